"""A column of values as compressed bytes, and back, without loss: delta, byte shuffle, zstd.

Types: `d` float (bit for bit, NaN payloads included), `q` integer of 64 bits, `?` bool, `j` anything that JSON holds (integers of
any size, text), `n` nothing but None. A column is: type (1 byte), coding (1 byte: 0 plain, 1 delta, 2 exclusive or), count (u32), body.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard

_HEAD = struct.Struct("<cBI")
_PLAIN, _DELTA, _XOR = 0, 1, 2
_LEVEL = 3
_MAX_JSON = 256 << 20
_local = threading.local()


def _compress(body: bytes) -> bytes:
    worker = getattr(_local, "compressor", None)
    if worker is None:
        worker = _local.compressor = zstandard.ZstdCompressor(level=_LEVEL)
    return bytes(worker.compress(body))


def _decompress(body: bytes, size: int) -> bytes:
    worker = getattr(_local, "decompressor", None)
    if worker is None:
        worker = _local.decompressor = zstandard.ZstdDecompressor()
    if zstandard.frame_content_size(body) > size:  # else that much memory is asked for
        raise ValueError("a damaged column: it claims to hold more than it may")
    out = bytes(worker.decompress(body, max_output_size=max(size, 1)))
    if len(out) > size:
        raise ValueError("a column holds more than its count says")
    return out


def _shuffle(words: Any) -> bytes:
    return bytes(words.view(np.uint8).reshape(-1, 8).T.tobytes())


def _unshuffle(body: bytes, count: int) -> Any:
    if len(body) != 8 * count:
        raise ValueError(f"a column of {count} values must have {8 * count} bytes, not {len(body)}")
    return np.frombuffer(body, np.uint8).reshape(8, count).T.copy().view("<u8").reshape(count)


def _difference(words: Any) -> Any:
    out = words.copy()
    out[1:] -= words[:-1]
    return out


def _exclusive(words: Any) -> Any:
    out = words.copy()
    out[1:] ^= words[:-1]
    return out


def pack(kind: str, values: Sequence[Any]) -> bytes:
    """Return the values as bytes. `unpack` gives back equal values of the same types.

    Raises OverflowError for an integer over 64 bits under `q`, and TypeError or ValueError for a value that is not of the kind.
    """
    count = len(values)
    if kind == "d":
        words = np.array(values, "<f8").view("<u8")
        plain, coded = _compress(_shuffle(words)), _compress(_shuffle(_exclusive(words)))
        coding, body = (_XOR, coded) if len(coded) < len(plain) else (_PLAIN, plain)
    elif kind == "q":
        words = np.array(values, "<i8").view("<u8")
        coding, body = _DELTA, _compress(_shuffle(_difference(words)))
    elif kind == "?":
        coding, body = _PLAIN, _compress(np.packbits(np.array(values, np.bool_)).tobytes())
    elif kind == "j":
        coding, body = _PLAIN, _compress(json.dumps(list(values), separators=(",", ":")).encode())
    elif kind == "n":
        coding, body = _PLAIN, b""
    else:
        raise ValueError(f"no such column type: {kind!r}")
    return _HEAD.pack(kind.encode(), coding, count) + body


def unpack(blob: bytes) -> list[Any]:
    """Return the values of a packed column.

    Raises ValueError when the bytes are not one.
    """
    try:
        kind, coding, count = _HEAD.unpack_from(blob)
        body = blob[_HEAD.size :]
        if kind == b"n":
            return [None] * count
        if kind == b"j":
            values = json.loads(_decompress(body, _MAX_JSON))
            if not isinstance(values, list) or len(values) != count:
                raise ValueError("a JSON column's count does not match")
            return values
        if kind == b"?":
            bits = np.frombuffer(_decompress(body, (count + 7) // 8), np.uint8)
            return list(np.unpackbits(bits, count=count).astype(np.bool_).tolist())
        words = _unshuffle(_decompress(body, 8 * count), count)
        if coding == _DELTA:
            words = np.cumsum(words, dtype="<u8")
        elif coding == _XOR:
            words = np.bitwise_xor.accumulate(words)
        if kind == b"d":
            return list(words.view("<f8").tolist())
        if kind == b"q":
            return list(words.view("<i8").tolist())
    except (struct.error, zstandard.ZstdError, RecursionError) as error:
        raise ValueError(f"a damaged column: {error}") from None
    raise ValueError(f"no such column type: {kind!r}")


def kind_of(value: object) -> str:
    """Return the column type that holds a value: bool `?`, float `d`, integer of 64 bits `q`, else `j`."""
    if isinstance(value, bool):
        return "?"
    if isinstance(value, float):
        return "d"
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return "q"
    return "j"
