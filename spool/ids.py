"""Ids that need no coordination and sort by time of creation.

128 bits: 48 bits of Unix milliseconds, 80 random bits. As text: 22 characters of base 62 in ASCII order, so that
text order is byte order. The same form is valid as a Simvue object id.
"""

from __future__ import annotations

import os
import time
from typing import TypeGuard

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
LENGTH = 22
_VALUE = {c: i for i, c in enumerate(ALPHABET)}


def new_id() -> bytes:
    """Return a new id, 16 bytes. Two ids of one millisecond are equal with a probability of 2**-80."""
    return (time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10)


def to_text(raw: bytes) -> str:
    """Return the 22-character text of a 16-byte id."""
    n = int.from_bytes(raw, "big")
    out = []
    for _ in range(LENGTH):
        n, digit = divmod(n, 62)
        out.append(ALPHABET[digit])
    return "".join(reversed(out))


def from_text(text: str) -> bytes:
    """Return the 16 bytes of an id's text.

    Raises ValueError when the text is not 22 characters of base 62 below 2**128.
    """
    if len(text) != LENGTH:
        raise ValueError(f"not an id: {text!r} (22 letters and digits are expected)")
    n = 0
    for c in text:
        digit = _VALUE.get(c)
        if digit is None:
            raise ValueError(f"not an id: {text!r} (22 letters and digits are expected)")
        n = n * 62 + digit
    if n >> 128:
        raise ValueError(f"not an id: {text!r} (its value is over 128 bits)")
    return n.to_bytes(16, "big")


def is_id(text: str) -> bool:
    """Say whether the text is an id's."""
    try:
        from_text(text)
    except ValueError:
        return False
    return True


def is_digest(value: object) -> TypeGuard[str]:
    """Say whether a value is a SHA-256 in 64 lower-case hex digits. Only such a text may become a part of a path."""
    return isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef")
