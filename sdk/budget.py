"""What a spool may take: the `[budget]` table of simspool.toml, and SIMSPOOL_BUDGET_* for each of its keys (docs/budgets.md)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import ConfigError

Shed = Literal["no", "data", "runs"]

KEYS = ("bytes", "inodes", "age", "free", "shed")
DAY = 86400.0
_SCALE = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_BINARY = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40, "pi": 1 << 50}
# texts, compiled when there is a budget to read: an import is to be cheap
_SIZE = r"(?i:([0-9][0-9_]*(?:\.[0-9]+)?)\s*([kmgtp]i?)?(?:b|bytes?)?)"
_AGE = r"(?i:([0-9]+(?:\.[0-9]+)?)\s*(d|days?|h|hours?|w|weeks?)?)"
_SHARE = r"([0-9]+(?:\.[0-9]+)?)\s*%"
_LEAST_BYTES, _LEAST_INODES = 10**6, 100
_SHED: dict[Any, Shed] = {
    **dict.fromkeys((False, "false", "no", "0"), "no"), **dict.fromkeys((True, "true", "yes", "1"), "data"), "runs": "runs",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Floor:
    """How much of a disk stays free: bytes, or a share of it (then at most `cap` bytes, where that is not 0)."""

    bytes: int = 0
    share: float = 0.0
    cap: int = 0

    def of(self, disk: int) -> int:
        """Return the floor in bytes for a disk of so many."""
        found = max(self.bytes, int(self.share * disk))
        return min(found, self.cap) if self.cap else found


DEFAULT_FLOOR = Floor(share=0.01, cap=256 << 20)
"""Without any setting: events, alerts and the status of a run can still be recorded when a disk is as good as full."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The settings. None is no limit. `age` is in seconds. `shed`: what may go without a receipt (docs/budgets.md)."""

    bytes: int | None = None
    inodes: int | None = None
    age: float | None = None
    free: Floor = DEFAULT_FLOOR
    shed: Shed = "no"

    @property
    def is_limited(self) -> bool:
        """Whether the spool itself has a limit, so that it has to be measured."""
        return self.bytes is not None or self.inodes is not None


def load_budget(table: Any, path: str, env: Mapping[str, str]) -> Budget:
    """Return the budget of a `[budget]` table (from `path`) and the environment, which wins key by key.

    Raises ConfigError for a key that does not exist and for a value that is none.
    """
    if not isinstance(table, dict):
        raise ConfigError(f"[budget] in {path} must be a table, not {table!r}")
    unknown = sorted(table.keys() - set(KEYS))
    if unknown:
        raise ConfigError(f"[budget] {unknown[0]} in {path} does not exist: there are {', '.join(KEYS)}")
    found: dict[str, Any] = {}
    for key in KEYS:
        variable = f"SIMSPOOL_BUDGET_{key.upper()}"
        value, where = (env[variable], variable) if env.get(variable) else (table.get(key), f"[budget] {key} in {path}")
        if value is not None:
            found[key] = _READ[key](value, where)
    return Budget(**found)


def parse_size(value: Any, where: str) -> int:
    """Return bytes: a whole number of them, or text like "20 GB" (10^9 each) or "512 MiB" (2^20 each). Raises ConfigError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(_SIZE, value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(f'{where} must be a size such as "20 GB", "512 MiB" or a number of bytes, not {value!r}')
    unit = (match[2] or "").lower()
    size = float(match[1].replace("_", "")) * (_BINARY.get(unit) or _SCALE[unit])
    if not size < 1e30:
        raise ConfigError(f"{where} is more than any disk has: {value[:40]!r}")
    return int(size)


def _bytes(value: Any, where: str) -> int:
    size = parse_size(value, where)
    if size < _LEAST_BYTES:
        raise ConfigError(f"{where} is {size} bytes, and one run's first file takes more: give at least 1 MB, or leave it out for no limit")
    return size


def _inodes(value: Any, where: str) -> int:
    number = value if not isinstance(value, str) else int(value.replace("_", "")) if _is_number(value) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < _LEAST_INODES:
        raise ConfigError(f"{where} must be a whole number of files and folders from {_LEAST_INODES}, not {value!r}")
    return number


def _is_number(text: str) -> bool:
    return text.replace("_", "").isdecimal() and len(text) < 40


def _age(value: Any, where: str) -> float:
    days = float(min(value, 1e300)) if isinstance(value, int | float) and not isinstance(value, bool) else None
    match = re.fullmatch(_AGE, value.strip()) if isinstance(value, str) else None
    if match is not None:
        days = float(match[1]) * {"h": 1 / 24, "w": 7.0}.get((match[2] or "d")[0].lower(), 1.0)
    if days is None or not math.isfinite(days) or days < 0:
        raise ConfigError(f'{where} must be a number of days, or text such as "30 days" or "12 hours", not {value!r}')
    return days * DAY


def _free(value: Any, where: str) -> Floor:
    match = re.fullmatch(_SHARE, value.strip()) if isinstance(value, str) else None
    if match is None:
        return Floor(bytes=parse_size(value, f'{where} (or a share, such as "5%")'))
    if float(match[1]) > 90:
        raise ConfigError(f"{where} must be at most 90%, not {value!r}")
    return Floor(share=float(match[1]) / 100)


def _shed(value: Any, where: str) -> Shed:
    key = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(key, str | bool) or key not in _SHED:
        raise ConfigError(f'{where} must be true, false or "runs", not {value!r}')
    return _SHED[key]


_READ = {"bytes": _bytes, "inodes": _inodes, "age": _age, "free": _free, "shed": _shed}
