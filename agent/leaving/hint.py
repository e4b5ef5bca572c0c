"""A quick look at bytes in which a secret may be: most of what is recorded can be passed over."""

from __future__ import annotations

from simspool.sdk.redaction import Redactor


class Hint:
    """Says quickly of bytes, text or its JSON, that nothing the redactor finds can be in them: most of what is recorded is like that.

    It passes much that is no secret, and nothing that is one: each alternative is wider than what it stands for in sdk/redaction.py.
    """

    def __init__(self, redactor: Redactor) -> None:
        import re2

        own = "".join(f"|{re2.escape(prefix)}" for prefix in redactor.prefixes)
        self._pattern = None if redactor.names else re2.compile((_ANY + own).encode())

    def passes(self, data: bytes) -> bool:
        """Say whether something may be in there."""
        return self._pattern is None or self._pattern.search(data) is not None


_WITHIN = r"[_.\-]*"  # names may be cut into words
_WORDS = "|".join((
    _WITHIN.join("passw"), _WITHIN.join("key"), "passphrase", "passcode", "secret", "credential", "token", "auth", "bearer", "cookie",
    "sig", "pat",
))  # fmt: skip
_ESCAPE = r"\\[a-z]|\\u[0-9a-f]{4}"  # as JSON has it
_BEGIN = rf"(?:^|[^A-Za-z0-9_\-]|{_ESCAPE})"
_REST = r"[A-Za-z0-9_.\-]*"
_ANY = "|".join((
    r"[A-Za-z0-9+.-]://[^/\s\"'<>?#]+@", "PRIVATE KEY",
    rf"(?i:(?:{_WORDS}){_REST}(?:{_ESCAPE}|[^A-Za-z0-9=:]){{0,24}}[=:])",
    rf"(?i:-{_REST}(?:{_WORDS}){_REST}(?:{_ESCAPE}|[^!-~]))",
    rf'(?i:(?:{_WORDS})(?:[^"\\]|\\.)*":)',  # the key of metadata may be any text
    rf"{_BEGIN}(?:eyJ|A[KS]IA|AIza|gh[pousr]_|gl[a-z]{{2,4}}-|xox[abeoprs]-|hf_|npm_)[A-Za-z0-9_-]{{8}}",
    rf"{_BEGIN}(?:github_pat_|pypi-|[sr]k[-_])[A-Za-z0-9_-]{{20}}",
))  # fmt: skip
