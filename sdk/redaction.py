"""What is captured without being told (command lines, variables, tracebacks) goes through here: secrets are replaced by "<redacted>".

Recognised are values of options, variables and fields whose names say secret, user and password in addresses, and the shapes of well-known
tokens and private keys. Guarantee: the time is linear in the text. Its limit: a secret that looks like any other word, under a name that
does not tell, is not found; name it in `[redact] names` or `prefixes`.

What a script logs itself (metrics, events, metadata, files) is never changed: it is data, and a changed value would be a wrong one. It is
searched for secrets before it leaves the site in a bundle (docs/security.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .errors import ConfigError

REDACTED = "<redacted>"
_LONGEST = 1 << 20  # characters that are looked at; what is longer is cut
_REMEMBERED = 1000  # judgements of names
_MOST = 100  # names, or prefixes, of the settings
_SURE = {"password", "passwd", "passphrase", "passcode", "secret", "secrets", "passwort", "apikey", "credentials", "credential"}
_LIKELY = {"token", "auth", "authorization", "bearer", "cookie", "signature", "sig", "pat"}  # a small number is none: `--token 3`
_KEYS = {"api", "access", "private", "ssh", "secret", "encryption", "signing", "client", "account", "master", "auth", "deploy", "license"}
_PLACES = {"PWD", "OLDPWD", "SSH_AUTH_SOCK", "XAUTHORITY"}
_ABOUT = {"file", "path", "dir", "name", "type", "id", "url", "length", "limit", "count", "expiry", "ttl", "size"}
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_NAME = re.compile(
    r"(?<![A-Za-z0-9_.\-])(?P<dash>-{0,2})(?P<name>[A-Za-z_][A-Za-z0-9_.\-]{0,127})(?P<sep>[\"']?\s{0,4}[=:]\s{0,4}|\s{1,4})"
)
_VALUE = re.compile(r"\"[^\"]*\"?|'[^']*'?|[^\s\"',;&|)}\]]+")
_SCHEME = re.compile(r"(?:bearer|basic|token|digest)\s+", re.IGNORECASE)
_USER_INFO = re.compile(r"(?<![A-Za-z0-9+.\-])([A-Za-z][A-Za-z0-9+.\-]{0,30}://)([^/\s\"'<>@?#]{1,512}(?:@[^/\s\"'<>@?#]{1,512}){0,4})@")
_OPTION = re.compile(r"-{1,2}([A-Za-z_][A-Za-z0-9_.\-]*)")
_USER_OPTIONS = {"-u", "--user", "--proxy-user", "-U"}
_SMALL = re.compile(r"(?:[-+]?[0-9.eE+\-]{1,12}|true|false|yes|no|none|null|on|off)", re.IGNORECASE)
_EDGE, _END = r"(?<![A-Za-z0-9_\-])", r"(?![A-Za-z0-9_\-])"
_SHAPES: tuple[tuple[str, str], ...] = (
    ("JSON web token", _EDGE + r"eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}"),
    ("AWS key", _EDGE + r"(?:AKIA|ASIA)[A-Z0-9]{16}" + _END),
    ("GitHub token", _EDGE + r"(?:gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{30,255})"),
    ("GitLab token", _EDGE + r"gl(?:pat|dt|rt|ptt|cbt|ft|soat)-[A-Za-z0-9_\-]{16,255}"),
    ("secret key", _EDGE + r"(?:sk|rk)[-_](?:[a-z]{2,8}[-_])?[A-Za-z0-9_\-]{20,255}"),
    ("Slack token", _EDGE + r"xox[abeoprs]-[A-Za-z0-9\-]{10,255}"),
    ("Hugging Face token", _EDGE + r"hf_[A-Za-z0-9]{30,255}"),
    ("Google key", _EDGE + r"AIza[A-Za-z0-9_\-]{35}" + _END),
    ("PyPI token", _EDGE + r"pypi-[A-Za-z0-9_\-]{50,1024}"),
    ("npm token", _EDGE + r"npm_[A-Za-z0-9]{36}" + _END),
)
_TOKENS = re.compile("|".join(f"(?:{shape})" for _, shape in _SHAPES))
_BEGIN_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_END_KEY = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")


class Span(NamedTuple):
    """A secret in a text: from `start` to `end`; `what` says how it was recognised."""

    start: int
    end: int
    what: str


class Redactor:
    """Finds secrets, and takes them out.

    `names`: further names, or parts of names, whose values are secret; `prefixes`: what further tokens begin with.
    """

    def __init__(self, names: Iterable[str] = (), prefixes: Iterable[str] = ()) -> None:
        self.names, self.prefixes = tuple(names), tuple(sorted(set(prefixes), key=len, reverse=True))
        self._names = tuple(_letters(name) for name in self.names)
        self._known: dict[str, int] = {}
        either = "|".join(map(re.escape, self.prefixes))
        self._own = re.compile(_EDGE + f"(?:{either})" + r"[A-Za-z0-9_+/=.\-]{6,1024}") if either else None

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Redactor:
        """Return the redactor of a `[redact]` table. Raises ConfigError."""
        for key in table:
            if key not in {"names", "prefixes"}:
                raise ConfigError(f"[redact] has no setting {key!r}; there are names and prefixes")
        for key, least in (("names", 2), ("prefixes", 3)):
            value = table.get(key, [])
            if not isinstance(value, list) or len(value) > _MOST or not all(isinstance(v, str) and least <= len(v) <= 100 for v in value):
                raise ConfigError(f"[redact] {key} must be a list of at most {_MOST} texts of {least} to 100 characters")
        if not all(_letters(name) for name in table.get("names", [])):
            raise ConfigError("[redact] names must have letters or digits in them")
        return cls(table.get("names", ()), table.get("prefixes", ()))

    def is_secret(self, name: str) -> bool:
        """Say whether a value under this name is one to be kept secret."""
        return self._strength(name) > 0

    def value(self, name: str, value: str) -> str:
        """Return a value as it may be kept under its name."""
        return REDACTED if self._hides(name, value) else self.text(value)

    def arguments(self, argv: Sequence[str]) -> list[str]:
        """Return an argument vector as it may be kept: of as many arguments."""
        kept: list[str] = []
        name = ""
        for argument in argv:
            if name and (not argument.startswith("--") or self._strength(name) > 1):
                kept.append(self._after(name, argument))
                name = ""
                continue
            option = _OPTION.fullmatch(argument)
            name = argument if argument in _USER_OPTIONS else option[1] if option is not None and self.is_secret(option[1]) else ""
            kept.append(self.text(argument))
        return kept

    def _after(self, name: str, argument: str) -> str:
        if name in _USER_OPTIONS:
            user, colon, password = argument.partition(":")
            hidden = colon and password and not password.isdecimal() and not password.startswith("//")
            return f"{user}:{REDACTED}" if hidden else self.text(argument)
        return self.value(name, argument)

    def text(self, text: str) -> str:
        """Return a text as it may be kept."""
        spans = self.find(text)
        if len(text) > _LONGEST:
            text = text[:_LONGEST] + " [...]"
        if not spans:
            return text
        parts, at = [], 0
        for start, end, _ in spans:
            parts += [text[at:start], REDACTED]
            at = end
        return "".join([*parts, text[at:]])

    def find(self, text: str) -> list[Span]:
        """Return the secrets in the first million characters of a text, in order, not overlapping."""
        text = text[:_LONGEST]
        found = [Span(m.start(2), m.end(2), "user in an address") for m in _USER_INFO.finditer(text) if _tells(m[1], m[2])]
        found += [Span(m.start(), m.end(), _kind(m[0])) for m in _TOKENS.finditer(text)]
        if self._own is not None:
            found += [Span(m.start(), m.end(), "configured prefix") for m in self._own.finditer(text)]
        found += self._keys(text)
        found += self._named(text)
        return _apart(found)

    @staticmethod
    def _keys(text: str) -> list[Span]:
        found, at = [], 0
        while (begin := _BEGIN_KEY.search(text, at)) is not None:
            end = _END_KEY.search(text, begin.end())
            at = end.end() if end is not None else len(text)
            found.append(Span(begin.start(), at, "private key"))
        return found

    def _named(self, text: str) -> list[Span]:
        found, at = [], 0
        while (match := _NAME.search(text, at)) is not None:
            at = match.end()
            spaced = match["sep"].isspace()
            if (spaced and not match["dash"]) or not self.is_secret(match["name"]):
                continue
            start = at
            if (scheme := _SCHEME.match(text, start)) is not None:
                start = scheme.end()
            value = _VALUE.match(text, start)
            if value is None or (spaced and value[0].startswith("--")):
                continue
            inner = value[0].strip("\"'")
            if inner and inner != REDACTED and self._hides(match["name"], inner):
                offset = value.start() + (value[0][0] in "\"'")
                found.append(Span(offset, offset + len(inner), f"value of {match['name'][:40]}"))
            at = value.end()
        return found

    def _hides(self, name: str, value: str) -> bool:
        strength = self._strength(name)
        return strength > 1 or (strength == 1 and _SMALL.fullmatch(value) is None)

    def _strength(self, name: str) -> int:
        """0: no secret's name; 1: one, unless the value is a small number or a yes or no; 2: one."""
        found = self._known.get(name)
        if found is None:
            if len(self._known) > _REMEMBERED:
                self._known.clear()
            found = self._known[name] = self._judge(name)
        return found

    def _judge(self, name: str) -> int:
        if name in _PLACES:
            return 0
        words = [word.lower() for word in _WORDS.findall(name)]
        flat = "".join(words)
        if any(own in flat for own in self._names):
            return 2
        if not words or (words[-1] in _ABOUT and len(words) > 1):
            return 0
        if not _SURE.isdisjoint(words) or "password" in flat or "passwd" in flat:
            return 2
        if not _LIKELY.isdisjoint(words) or "apikey" in flat or "accesskey" in flat or "secretkey" in flat:
            return 1
        # an option's `--sort-key` is none; a variable's SOLVER_KEY is one, more often than not
        return int(words[-1] in {"key", "keys"} and (len(words) == 1 or name.isupper() or not _KEYS.isdisjoint(words[:-1])))


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _tells(scheme: str, user: str) -> bool:
    return user != REDACTED and (":" in user or scheme.lower().endswith(("http://", "https://")))


def _kind(text: str) -> str:
    return next((name for name, shape in _SHAPES if re.match(shape, text)), "token")


def _apart(found: list[Span]) -> list[Span]:
    kept: list[Span] = []
    for span in sorted(found):
        if kept and span.start < kept[-1].end:
            if span.end > kept[-1].end:
                kept[-1] = Span(kept[-1].start, span.end, kept[-1].what)
        else:
            kept.append(span)
    return kept


PLAIN = Redactor()
"""Without settings of anybody's."""
