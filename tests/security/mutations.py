"""Mutations for the fuzz command: of bytes, and of values as JSON has them. The same Random gives the same mutation."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from random import Random
from typing import Any

_BYTES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF, 0x0A, 0x22, 0x5B, 0x7B, 0xF7, 0x5A)
_NUMBERS = (0, 1, 2, 3, 7, 8, 24, 31, 32, 33, 255, 256, 0x7FFF, 0xFFFF, 1 << 20, (1 << 20) + 8, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_WIDE = (*_NUMBERS, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_TEXTS = (
    "", "a", "..", "../../etc/passwd", "/etc/passwd", "a\0b", "\x1b[31m", "\ud800", "\u202e", "é", "x" * 300, "x" * 5000, "NaN", "1e999",
    "-1",
    "0" * 64, "f" * 64, "g" * 64, "re:(a+)+$", "re:(", "*", "[", "a b", "$float", "%s", "{0}", "http://[", "ftp://x", "//x", "1 of",
    "not (",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf"), 1 << 31, 1 << 53, (1 << 63) - 1, 1 << 63,
    -(1 << 63),
    (1 << 64) - 1, 1 << 100, 10**400, [], {}, [[]], [{}], [None], {"": None}, {"a": {}}, {"$float": "nan"}, {"$float": {"object": {}}},
)  # fmt: skip


def of_bytes(random: Random, data: bytes, others: Sequence[bytes] = (), most: int = 6) -> bytes:
    """Return the bytes with one to `most` changes; some take a piece of another specimen."""
    out = bytearray(data)
    for _ in range(random.randint(1, most)):
        size = len(out)
        if not size:
            out += random.randbytes(random.randint(1, 40))
            continue
        at, how = random.randrange(size), random.randrange(11)
        if how == 0:
            out[at] ^= 1 << random.randrange(8)
        elif how == 1:
            out[at] = random.choice(_BYTES)
        elif how == 2:
            del out[at : at + random.randint(1, 1 + min(64, size))]
        elif how == 3:
            out[at:at] = random.randbytes(random.randint(1, 16))
        elif how == 4:
            out[at:at] = out[at : at + random.randint(1, 200)]
        elif how == 5:
            del out[at:]
        elif how == 6:
            out[at : at + 4] = random.choice(_NUMBERS).to_bytes(4, "little")
        elif how == 7:
            out[at : at + 8] = random.choice(_WIDE).to_bytes(8, "little")
        elif how == 8:
            out[at : at + random.randint(1, 64)] = bytes(random.randint(1, 64))
        elif how == 9 and others:
            other = random.choice(others)
            start = random.randrange(len(other) or 1)
            out[at : at + random.choice((0, 8, 64))] = other[start : start + random.randint(1, 400)]
        else:
            aligned = at & ~7
            out[aligned : aligned + 2] = b"\xf7\x5a"
    return bytes(out)


def of_value(random: Random, value: Any, most: int = 4) -> Any:
    """Return a value with one to `most` of its parts changed, left out, doubled or put elsewhere."""
    out = copy.deepcopy(value)
    for _ in range(random.randint(1, most)):
        out = _change(random, out, depth=0)
    return out


def odd(random: Random) -> Any:
    """Return a value that nobody expects."""
    how = random.randrange(8)
    if how < 4:
        return copy.deepcopy(random.choice(_VALUES))
    if how < 7:
        return random.choice(_TEXTS)
    deep: Any = random.choice(([], {}, 1))
    for _ in range(random.choice((3, 70, 300))):
        deep = [deep] if random.random() < 0.5 else {"a": deep}
    return deep


def _change(random: Random, value: Any, depth: int) -> Any:
    if isinstance(value, dict) and value and depth < 50 and random.random() < 0.85:
        key = random.choice(list(value))
        how = random.randrange(10)
        if how == 0:
            del value[key]
        elif how == 1:
            value[random.choice(_TEXTS)] = value.pop(key)
        elif how == 2:
            value[key] = copy.deepcopy(value[random.choice(list(value))])
        elif how == 3:
            value[random.choice(_TEXTS)] = odd(random)
        else:
            value[key] = _change(random, value[key], depth + 1)
        return value
    if isinstance(value, list) and value and depth < 50 and random.random() < 0.85:
        at, how = random.randrange(len(value)), random.randrange(8)
        if how == 0:
            del value[at]
        elif how == 1:
            value.insert(at, odd(random))
        elif how == 2:
            value.append(copy.deepcopy(value[at]))
        else:
            value[at] = _change(random, value[at], depth + 1)
        return value
    if isinstance(value, str) and random.random() < 0.5:
        text = of_bytes(random, value.encode(errors="replace"), most=2)
        return text.decode(errors="surrogateescape" if random.random() < 0.1 else "replace")
    if isinstance(value, int) and not isinstance(value, bool) and random.random() < 0.5:
        return value + random.choice((-1, 1, 1 << 32, -(1 << 32), 1 << 62, -(1 << 64)))
    return odd(random)


def as_json(value: Any) -> bytes:
    """Return a value as JSON bytes, as lax as Python writes it: NaN, surrogates and numbers of any length are in it."""
    try:
        return json.dumps(value).encode()
    except (ValueError, RecursionError):  # a number of over 4300 digits, or nested beyond what can be written
        return b"[" * 2000
