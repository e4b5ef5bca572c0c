"""What counts as one real number, and as which column type."""

from __future__ import annotations

from typing import Any

from .errors import InvalidRecord


def column_type(kind: type) -> str | None:
    """Return the column type for values of a type; None for types that need a closer look at each value."""
    if kind is float:
        return "d"
    if kind is int:
        return "q"
    if kind is bool:
        return "?"
    if kind.__module__ == "numpy":  # known by name: this package never imports NumPy
        bases = {base.__name__ for base in kind.__mro__}
        if "generic" in bases and "floating" in bases:
            return "d"
        if "generic" in bases and "integer" in bases and "timedelta64" not in bases:
            return "q"
    return None


def scalar(name: str, value: Any) -> float | int | bool:
    """Return a metric's value as a plain Python number. Raises InvalidRecord, naming the metric, when it is not a single real number."""
    if isinstance(value, (bool, int, float)):
        return _exact(value)
    item = getattr(value, "item", None)
    if callable(item):
        try:
            value = item()
        except (ValueError, RuntimeError, TypeError):
            raise InvalidRecord(
                f"metric {name!r} has {getattr(value, 'size', 'several')} values: log one number, or save_object the array"[:300]
            ) from None
        if isinstance(value, (bool, int, float)):
            return _exact(value)
    return real(f"metric {name!r}", value)


def _exact(value: float) -> float:
    """Return the value without its subclass (an IntEnum, a NumPy float)."""
    if type(value) in {bool, int, float}:
        return value
    return int(value) if isinstance(value, int) else float(value)


def real(what: str, value: Any) -> float:
    """Return a real number as a float. Raises InvalidRecord, naming what it is for."""
    if not isinstance(value, (str, bytes, bytearray, complex)) and (hasattr(value, "__float__") or hasattr(value, "__index__")):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise InvalidRecord(f"{what} must be a real number, not {type(value).__name__} {value!r}"[:300])


def whole(what: str, value: Any) -> int:
    """Return an integer as an int. Raises InvalidRecord, naming what it is for."""
    if hasattr(value, "__index__"):
        try:
            return int(value.__index__())
        except TypeError:
            pass
    raise InvalidRecord(f"{what} must be an integer, not {type(value).__name__} {value!r}"[:300])
