"""Bundles that are damaged on their way: bytes changed, cut, doubled, moved, in any of their files."""

from __future__ import annotations

import random
from pathlib import Path


def damage(data: bytes, chance: random.Random) -> bytes:
    """Return bytes that differ from these in one of the ways in which files do."""
    out = bytearray(data)
    at = chance.randrange(len(out)) if out else 0
    kind = chance.randrange(8)
    if kind <= 2 and out:
        out[at] ^= 1 << chance.randrange(8)
    elif kind == 3 and out:
        out[at] = chance.randrange(256)
    elif kind == 4:
        del out[at : at + chance.choice((1, 2, 3, 4, 100, 5000))]
    elif kind == 5:
        out[at:at] = chance.randbytes(chance.choice((1, 2, 4, 100)))
    elif kind == 6:
        length = chance.choice((1, 4, 8, 64, 1000))
        other = chance.randrange(len(out)) if out else 0
        out[at : at + length] = out[other : other + length]
    else:
        out[at:] = b"" if chance.random() < 0.5 else bytes(len(out) - at)
    return bytes(out)


def files_of(bundle: Path) -> dict[str, bytes]:
    """Return a bundle's files."""
    return {p.name: p.read_bytes() for p in sorted(bundle.iterdir())}
