"""Numbers as programs of all languages print them."""

from __future__ import annotations

import math
import re

_EXACT = 1 << 53  # every integer up to here is a double
_LARGEST = (1 << 63) - 1
_LONGEST = 400  # digits of the largest double, and some more
_EDGES = b" \t\"'()[]{}<>,;:|"
_FORTRAN = re.compile(rb"([+-]?(?:\d+\.?\d*|\.\d+))(?:[dDqQeE]([+-]?\d+)|([+-]\d{3,4}))")
_ODD = {
    b"nan": math.nan, b"inf": math.inf, b"infinity": math.inf, b"nanq": math.nan, b"nans": math.nan,
}  # fmt: skip


def number(text: bytes) -> float | int | None:
    """Return the number that a text is, or None.

    Integers that a double cannot hold exactly stay integers, as far as 63 bits go; all else is a float. Taken are 1, 1., .5, 1e3,
    Fortran's 1.0D+00, 1.0Q+00 and 1.0-100 (three digits of exponent drive the letter out), nan, NaN(...), -inf, Infinity; also with
    quotes, brackets, commas, colons and a final full stop around. Not taken are 1,234, 1_000, 0x10, 5%, and the stars of a field
    that was too narrow: what the value was is not known.
    """
    if len(text) > _LONGEST:
        return None
    try:
        value = float(text)
    except ValueError:
        return _unusual(text)
    if b"_" in text:
        return None
    if (value >= _EXACT or value <= -_EXACT) and text.strip().lstrip(b"+-").isdigit():
        whole = int(text)
        if -_LARGEST <= whole <= _LARGEST:
            return whole
    return value


def whole_number(text: bytes) -> int | None:
    """Return the integer that a text is (7, 7.0, 7e3), or None. It may have 63 bits."""
    value = number(text)
    if value is None or value != value or abs(value) > _LARGEST or value != int(value):
        return None
    return int(value)


def _unusual(text: bytes) -> float | int | None:
    bare = text.strip(_EDGES)
    if bare.endswith(b"."):
        bare = bare[:-1]
    if bare != text and bare:
        return number(bare)
    match = _FORTRAN.fullmatch(bare)
    if match is not None:
        return float(match[1] + b"e" + (match[2] or match[3]))
    sign, body = (-1.0, bare[1:]) if bare[:1] == b"-" else (1.0, bare.removeprefix(b"+"))
    word = body.lower()
    if word.startswith((b"nan(", b"inf(")):  # NaN(0x8000000000000), -nan(ind): the closing bracket went with the edges
        word = word[:3]
    odd = _ODD.get(word)
    return None if odd is None else math.copysign(odd, sign)
