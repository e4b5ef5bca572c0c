"""Encoders: a closure for each shape, from the caller's dict straight to the bytes of a metric frame.

This is the hot path of the whole project. Up to four columns are written out by hand, which halves the cost; the closures
check names and exact types on every call and return None (or raise KeyError or struct.error) for what is not their shape.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from .frames import MARKER, Shape

# (values, sequence, boot ns, step, *extra) -> frame; extra is [time], [timestamp µs] as the flags say
Encode = Callable[..., "bytes | None"]

_crc32 = zlib.crc32
_pack_crc = struct.Struct("<I").pack


def never(*_: Any) -> bytes | None:
    """Encode nothing: where no shape is known yet."""
    return None


def encoder(shape: Shape, types: tuple[type, ...], kind: int, flags: int, crc_seed: int) -> Encode:
    """Return the encoder for values of these exact types, in a segment with this checksum seed."""
    layout = shape.layout(flags)
    pack = struct.Struct(layout.format[:-1]).pack
    prefix = struct.pack("<HBBI", MARKER, kind, flags, layout.size)
    if flags or len(types) > 4:
        return _any_shape(pack, prefix, shape, types, crc_seed)
    return (_one, _two, _three, _four)[len(types) - 1](pack, prefix, shape, types, crc_seed)


def _one(pack: Callable[..., bytes], prefix: bytes, shape: Shape, types: tuple[type, ...], seed: int) -> Encode:
    (a,), (t,), number = shape.names, types, shape.id

    def encode(values: Mapping[str, Any], seq: int, boot: int, step: int) -> bytes | None:
        x = values[a]
        if type(x) is not t or len(values) != 1:
            return None
        body = pack(prefix, seq, boot, number, step, x)
        return body + _pack_crc(_crc32(body, seed))

    return encode


def _two(pack: Callable[..., bytes], prefix: bytes, shape: Shape, types: tuple[type, ...], seed: int) -> Encode:
    (a, b), (t, u), number = shape.names, types, shape.id

    def encode(values: Mapping[str, Any], seq: int, boot: int, step: int) -> bytes | None:
        x, y = values[a], values[b]
        if type(x) is not t or type(y) is not u or len(values) != 2:
            return None
        body = pack(prefix, seq, boot, number, step, x, y)
        return body + _pack_crc(_crc32(body, seed))

    return encode


def _three(pack: Callable[..., bytes], prefix: bytes, shape: Shape, types: tuple[type, ...], seed: int) -> Encode:
    (a, b, c), (t, u, v), number = shape.names, types, shape.id

    def encode(values: Mapping[str, Any], seq: int, boot: int, step: int) -> bytes | None:
        x, y, z = values[a], values[b], values[c]
        if type(x) is not t or type(y) is not u or type(z) is not v or len(values) != 3:
            return None
        body = pack(prefix, seq, boot, number, step, x, y, z)
        return body + _pack_crc(_crc32(body, seed))

    return encode


def _four(pack: Callable[..., bytes], prefix: bytes, shape: Shape, types: tuple[type, ...], seed: int) -> Encode:
    (a, b, c, d), (t, u, v, w), number = shape.names, types, shape.id

    def encode(values: Mapping[str, Any], seq: int, boot: int, step: int) -> bytes | None:
        p, x, y, z = values[a], values[b], values[c], values[d]
        if type(p) is not t or type(x) is not u or type(y) is not v or type(z) is not w or len(values) != 4:
            return None
        body = pack(prefix, seq, boot, number, step, p, x, y, z)
        return body + _pack_crc(_crc32(body, seed))

    return encode


def _any_shape(pack: Callable[..., bytes], prefix: bytes, shape: Shape, types: tuple[type, ...], seed: int) -> Encode:
    names, number = shape.names, shape.id

    def encode(values: Mapping[str, Any], seq: int, boot: int, step: int, *extra: Any) -> bytes | None:
        if (*values,) != names or (*map(type, values.values()),) != types:
            return None
        body = pack(prefix, seq, boot, number, step, *extra, *values.values())
        return body + _pack_crc(_crc32(body, seed))

    return encode
