"""What leaves the site: runs are searched for secrets before they are packed, and a log says what was found and what was decided.

The search is a net, not a proof: it knows the shapes of well-known tokens and keys, and names that say secret (sdk/redaction.py). Nothing
is changed: what is recorded stays as it is, and either leaves so or does not.
"""
