"""Frames and payloads: FORMAT.md section 4."""

from __future__ import annotations

import importlib.resources
import math
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simspool.spool import InvalidRecord, encoders, frames, records, segment_header
from simspool.spool.frames import Shape
from simspool.spool.records import Kind

SEED = 0x1234
names = st.text(min_size=1, max_size=12)
int64 = st.integers(-(1 << 63), (1 << 63) - 1)


def same(a: Any, b: Any) -> bool:
    """Equality with NaN equal to itself and types that matter."""
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_the_checksum_is_crc32_iso_hdlc_with_its_published_check_value() -> None:
    assert zlib.crc32(b"123456789") == 0xCBF43926
    assert segment_header.seed(bytes(16), 1) == zlib.crc32(bytes(16) + b"\1\0\0\0")


def test_a_frame_has_the_bytes_that_the_specification_says() -> None:
    frame = frames.encode_json(Kind.EVENT, 7, 9, {"message": "hé"}, SEED)
    payload = '{"message":"hé"}'.encode()
    head = bytes.fromhex("f75a1200") + struct.pack("<IQq", len(frame), 7, 9)
    assert frame[:24] == head
    assert frame[24:-4].rstrip(b" ") == payload
    assert len(frame) % 8 == 0
    assert frame[-4:] == struct.pack("<I", zlib.crc32(frame[:-4], SEED))


def test_published_vectors_of_whole_frames() -> None:
    """The same two frames stand in FORMAT.md."""
    event = frames.encode_json(Kind.EVENT, 1, 2, {"message": "x"}, 0)
    assert event.hex() == "f75a120030000000010000000000000002000000000000007b226d657373616765223a2278227d2020202020c47b4090"
    encode = encoders.encoder(Shape(0, ("a",), "d"), (float,), Kind.METRICS, 0, 0)
    metrics = encode({"a": 0.5}, 1, 2, 3)
    assert metrics is not None
    assert metrics.hex() == "f75a10003000000001000000000000000200000000000000000000000300000000000000000000000000e03f64fc4cad"
    format_md = importlib.resources.files("simspool.spool").joinpath("FORMAT.md").read_text()
    assert event.hex() in format_md
    assert metrics.hex() in format_md


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=5) | st.sampled_from(["$float", "object"]), inner, max_size=3)
    | st.builds(lambda v: {"$float": v}, inner | st.sampled_from(["nan", "inf", "-inf"])),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=5))
def test_any_json_body_comes_back_as_it_was(body: dict[str, Any]) -> None:
    assert same(body, records.decode(records.encode(body)))


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=3), st.integers(1, (1 << 64) - 1), int64)
def test_a_json_frame_comes_back_as_it_was(body: dict[str, Any], seq: int, boot: int) -> None:
    frame = frames.encode_json(Kind.EVENT, seq, boot, body, SEED)
    (record,) = frames.decode(frame, SEED, {}).items
    assert isinstance(record, frames.Record)
    assert (record.kind, record.seq, record.boot_ns) == (Kind.EVENT, seq, boot)
    assert same(body, record.body)


def test_canonical_json_has_sorted_keys_no_blanks_and_escapes_only_for_lone_surrogates() -> None:
    assert records.encode({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    assert records.encode({"a": "é\ud800"}) == b'{"a":"\\u00e9\\ud800"}'
    assert records.encode({"a": math.nan, "b": [math.inf, -math.inf]}) == (
        b'{"a":{"$float":"nan"},"b":[{"$float":"inf"},{"$float":"-inf"}]}'
    )
    assert records.encode({"$float": "nan"}) == b'{"$float":{"object":{"$float":"nan"}}}'


@pytest.mark.parametrize("body", [{"a": {1: 2}}, {"a": object()}, {"a": b"x"}, {"a": {1, 2}}])
def test_what_json_has_no_form_for_is_an_invalid_record(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecord):
        records.encode(body)


def test_a_value_that_contains_itself_is_an_invalid_record() -> None:
    loop: dict[str, Any] = {}
    loop["a"] = loop
    with pytest.raises(InvalidRecord, match="nested"):
        records.encode(loop)


def test_a_frame_over_one_mebibyte_is_refused_and_the_largest_is_kept() -> None:
    with pytest.raises(InvalidRecord, match="file"):
        frames.encode_json(Kind.EVENT, 1, 1, {"message": "x" * (1 << 20)}, SEED)
    frame = frames.encode_json(Kind.EVENT, 1, 1, {"message": "x" * ((1 << 20) - 28 - 14)}, SEED)
    assert len(frame) == 1 << 20
    assert frames.decode(frame, SEED, {}).end == 1 << 20


@given(st.binary(max_size=400))
def test_decode_never_raises_on_random_bytes(data: bytes) -> None:
    found = frames.decode(data, SEED, {})
    assert found.items == []
    for at in range(0, len(data), 8):
        frames.check_frame(data, SEED, at)


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, (1 << 32) - 1), st.binary(max_size=200), st.booleans())
def test_hostile_heads_with_good_checksums_are_survived(kind: int, flags: int, length: int, payload: bytes, honest: bool) -> None:
    """A15: any length, kind and flags, the checksum right or not."""
    if honest:
        payload = payload.ljust((len(payload) + 7) & ~7 or 8) + b"1234"
        length = 24 + len(payload) + 4
    frame = frames.HEAD.pack(frames.MARKER, kind, flags, length, 1, 1) + payload
    frame += struct.pack("<I", zlib.crc32(frame, SEED))
    found = frames.decode(frame, SEED, {0: Shape(0, ("a",), "d")})
    assert found.end in {0, len(frame)}


def payload_frame(payload: bytes, kind: int = 18) -> bytes:
    payload = payload.ljust(((len(payload) + 28 + 7) & ~7) - 28)
    frame = frames.HEAD.pack(frames.MARKER, kind, 0, 28 + len(payload), 1, 1) + payload
    return frame + struct.pack("<I", zlib.crc32(frame, SEED))


@pytest.mark.parametrize(
    "payload",
    [b"[" * 100_000, b'{"a":' * 50_000, b'{"a":NaN}', b'{"a":Infinity}', b"5", b'"x"', b"\xff\xfe", b'{"a":' + b"9" * 5000 + b"}", b""],
)
def test_hostile_json_is_kept_as_raw_bytes(payload: bytes) -> None:
    """A15: deep nesting, huge integers, bare NaN, no object, no UTF-8: the frame is valid, its body is not understood."""
    (record,) = frames.decode(payload_frame(payload), SEED, {}).items
    assert isinstance(record, frames.Record)
    assert record.body is None
    assert record.raw.rstrip(b" ") == payload
    with pytest.raises(ValueError):
        records.decode(payload)


def test_duplicate_keys_and_numbers_over_the_range_do_not_raise() -> None:
    assert records.decode(b'{"a":1,"a":2}') == {"a": 2}
    assert records.decode(b'{"a":1e999}') == {"a": math.inf}


@pytest.mark.parametrize("body", [{}, {"shape": True, "names": ["a"], "types": "d"}, {"shape": 0, "names": [], "types": ""},
                                  {"shape": 0, "names": ["a"], "types": "x"}, {"shape": 4096, "names": ["a"], "types": "d"},
                                  {"shape": 0, "names": [1], "types": "d"}, {"shape": 0, "names": ["a", "b"], "types": "d"}])  # fmt: skip
def test_what_is_not_a_definition_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        frames.parse_shape(body)


def test_a_kind_that_is_not_known_is_forwarded_with_its_bytes() -> None:
    (record,) = frames.decode(payload_frame(b"\x00\x01", kind=200), SEED, {}).items
    assert isinstance(record, frames.Record)
    assert (record.kind, record.body, record.raw[:2]) == (200, None, b"\x00\x01")


def test_two_definitions_of_one_number_that_differ_end_the_valid_prefix() -> None:
    one = frames.encode_definition(Shape(0, ("a",), "d"), 1, SEED)
    other = frames.encode_definition(Shape(0, ("b",), "d"), 1, SEED)
    assert frames.decode(one + one + other, SEED, {}).end == 2 * len(one)


def test_marks_say_where_reading_may_begin_again() -> None:
    data = b"".join(frames.encode_json(Kind.EVENT, n, 1, {"message": "x" * 50}, SEED) for n in range(1, 101))
    found = frames.decode(data, SEED, {}, mark_every=1000)
    assert len(found.marks) >= 8
    for seq, offset in found.marks[:-1]:
        assert frames.HEAD.unpack_from(data, offset)[4] == seq


def test_the_chain_depends_on_order_and_gaps() -> None:
    whole = frames.extend_chain(0, [1, 2, 3])
    assert frames.extend_chain(frames.extend_chain(0, [1]), [2, 3]) == whole
    assert frames.extend_chain(0, [2, 1, 3]) != whole
    assert frames.extend_chain_gap(frames.extend_chain(0, [1]), 2) != whole
