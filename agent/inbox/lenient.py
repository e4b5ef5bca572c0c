"""One line of an inbox as a value: JSON, and numbers as C, Fortran and shells print them where JSON has none.

Accepted beyond JSON: nan, inf, infinity in any case and with a sign, C's nan(...), a sign +, no digit before or behind the point, leading
zeros, Fortran's exponents (1D3, 1Q3, 1.0-101), and control characters inside texts. In linear time.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_LINE = 1 << 20  # bytes, without the newline
_LONGEST_NUMBER = 400  # characters
_WORD = re.compile(r'"(?:[^"\\]++|\\.)*+"|[^\s"\[\]{},:]+')
_NUMBER = re.compile(r"([+-]?)(?:(\d+)(\.\d*)?|(\.\d+))(?:[eEdDqQ]([+-]?\d+)|([+-]\d+))?", re.ASCII)
_NOT_FINITE = re.compile(r"([+-]?)(?:(nan)(?:\([^()]*\))?|inf(?:inity)?)", re.IGNORECASE)
_WORDS = frozenset({"true", "false", "null"})
_decode = json.JSONDecoder(strict=False).decode  # json.loads makes a decoder for each line


class NotUnderstood(ValueError):
    """Raised for a line that is not what it should be; the message says why, in a few words."""


def parse(line: bytes) -> dict[str, Any]:
    """Return the object in a line. Raises NotUnderstood."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise NotUnderstood(f"not UTF-8 text at byte {error.start}") from None
    try:
        value = _decode(text)
    except RecursionError:
        raise NotUnderstood("nested too deeply") from None
    except ValueError:
        value = _parse_leniently(text)
    if not isinstance(value, dict):
        raise NotUnderstood("a line must be an object: {...}")
    return value


def _parse_leniently(text: str) -> Any:
    try:
        return _decode(_WORD.sub(_as_json, text))
    except NotUnderstood:
        raise
    except RecursionError:
        raise NotUnderstood("nested too deeply") from None
    except ValueError as error:
        raise NotUnderstood(f"not JSON: {error}"[:200]) from None


def _as_json(found: re.Match[str]) -> str:
    word = found[0]
    if word[0] == '"' or word in _WORDS:
        return word
    return json.dumps(number(word))


def number(word: str) -> float | int:
    """Return the number that a word is. Raises NotUnderstood."""
    if len(word) <= _LONGEST_NUMBER:
        if found := _NOT_FINITE.fullmatch(word):
            return float(f"{found[1]}nan" if found[2] else f"{found[1]}inf")
        if found := _NUMBER.fullmatch(word):
            sign, whole, fraction, bare, *exponents = found.groups()
            if fraction is None and bare is None and not any(exponents):
                return int(f"{sign}{whole}")
            return float(f"{sign}{whole or ''}{fraction or bare or ''}e{exponents[0] or exponents[1] or 0}")
        if not word.strip("*"):
            raise NotUnderstood(f"{word[:20]}: the number did not fit its field: use a wider format, or list-directed output")
    raise NotUnderstood(f"not a number, true, false or null: {word[:40]!r}")
