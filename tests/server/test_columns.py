"""The column codec gives back what it was given: same values, same types, same bits."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simspool.agent.server import columns

FLOATS = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=300)
INTS = st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=300)


def bits(values: list[float]) -> list[bytes]:
    return [struct.pack("<d", v) for v in values]


@given(FLOATS)
def test_floats_keep_every_bit(values: list[float]) -> None:
    assert bits(columns.unpack(columns.pack("d", values))) == bits(values)


@given(INTS)
def test_integers_keep_their_value_and_type(values: list[int]) -> None:
    found = columns.unpack(columns.pack("q", values))
    assert found == values
    assert all(type(v) is int for v in found)


@given(st.lists(st.booleans(), max_size=300))
def test_bools_stay_bools(values: list[bool]) -> None:
    found = columns.unpack(columns.pack("?", values))
    assert found == values
    assert all(type(v) is bool for v in found)


@given(st.lists(st.one_of(st.integers(), st.none(), st.text(), st.floats(allow_nan=False)), max_size=50))
def test_json_columns(values: list[Any]) -> None:
    assert columns.unpack(columns.pack("j", values)) == values


def test_special_floats() -> None:
    nan_with_payload = struct.unpack("<d", bytes.fromhex("0100000000fcf87f"))[0]
    values = [0.0, -0.0, math.inf, -math.inf, math.nan, nan_with_payload, 5e-324, 1.7976931348623157e308]
    assert bits(columns.unpack(columns.pack("d", values))) == bits(values)


def test_nothing_costs_nothing() -> None:
    assert columns.unpack(columns.pack("n", [None] * 1000)) == [None] * 1000
    assert len(columns.pack("n", [None] * 1000)) < 10


def test_a_step_counter_and_a_smooth_series_are_small() -> None:
    assert len(columns.pack("q", range(100_000))) < 1000
    assert len(columns.pack("?", [True] * 100_000)) < 200


@given(FLOATS, st.data())
def test_damaged_columns_are_noticed_or_give_as_many_values(values: list[float], data: Any) -> None:
    blob = bytearray(columns.pack("d", values))
    place = data.draw(st.integers(0, len(blob) - 1))
    blob[place] ^= data.draw(st.integers(1, 255))
    if place >= 2:  # type and coding are what the reader is told
        try:
            found = columns.unpack(bytes(blob))
        except ValueError:
            return
        assert isinstance(found, list)


def test_a_column_that_claims_to_be_huge_asks_for_no_memory() -> None:
    blob = bytearray(columns.pack("d", [0.0, 0.0]))
    blob[10] ^= 192  # the frame's content size
    with pytest.raises(ValueError, match="claims to hold more"):
        columns.unpack(bytes(blob))


@pytest.mark.parametrize("blob", [b"", b"d", b"x\0\0\0\0\0", b"d\0\1\0\0\0", b"d\0\xff\xff\xff\xff", b"q\1\2\0\0\0junk"])
def test_what_is_no_column_is_refused(blob: bytes) -> None:
    with pytest.raises(ValueError):
        columns.unpack(blob)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(OverflowError):
        columns.pack("q", [1 << 63])
    with pytest.raises(ValueError):
        columns.pack("z", [1])


@pytest.mark.parametrize(("value", "kind"), [(True, "?"), (1, "q"), (1.0, "d"), (1 << 63, "j"), (-(1 << 63), "q"), ("x", "j")])
def test_kind_of(value: object, kind: str) -> None:
    assert columns.kind_of(value) == kind
