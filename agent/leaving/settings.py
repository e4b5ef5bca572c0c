"""The `[leaving]` table of simspool.toml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simspool.sdk.errors import ConfigError

VERDICTS = ("warn", "refuse", "off")
_ALLOWS = ("run", "folder", "tag", "artifact")


@dataclass(frozen=True, slots=True)
class LeavingSettings:
    """The `[leaving]` table: what follows from a finding, which ones are known and accepted, and which runs may leave at all.

    `allow` and `only` hold "run:GLOB" (id or name), "folder:GLOB", "tag:GLOB"; `allow` also "artifact:GLOB".
    """

    secrets: str = "warn"
    allow: tuple[tuple[str, str], ...] = ()
    only: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> LeavingSettings:
        """Read the table. Raises ConfigError."""
        for key in table:
            if key not in {"secrets", "allow", "only"}:
                raise ConfigError(f"[leaving] has no setting {key!r}; there are secrets, allow and only")
        verdict = table.get("secrets", "warn")
        if verdict not in VERDICTS:
            raise ConfigError(f"[leaving] secrets = {verdict!r} is not one of {', '.join(VERDICTS)}")
        return cls(verdict, _globs(table, "allow", _ALLOWS), _globs(table, "only", _ALLOWS[:-1]))


def _globs(table: Mapping[str, Any], key: str, kinds: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    given = table.get(key, [])
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise ConfigError(f"[leaving] {key} must be a list of texts")
    found = []
    for text in given:
        kind, colon, glob = text.partition(":")
        if not colon or not glob or kind not in kinds:
            raise ConfigError(f'[leaving] {key}: {text!r} is not "{":GLOB", "".join(kinds)}:GLOB"')
        found.append((kind, glob))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Leaving:
    """The `[leaving]` and `[redact]` tables, as they are in the file."""

    table: Mapping[str, Any] = field(default_factory=dict)
    redact: Mapping[str, Any] = field(default_factory=dict)
