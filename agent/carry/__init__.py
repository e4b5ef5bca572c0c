"""Carrying runs from one spool to another: by bundles, over a gap that no packet crosses, and by relays.

`outgoing` finds what the other side lacks, `incoming` puts it into a spool, `receipts` say there and here what became of it. What
travels are the very bytes of segments and blobs; `carried` keeps an agent from taking for its own what runs elsewhere. docs/bundles.md is
the page for people.
"""
