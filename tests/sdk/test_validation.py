"""Names, periods and times: what is accepted, and as what."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simspool.sdk import InvalidRecord
from simspool.sdk import validation as check


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1 day", 86400), ("2 weeks 3 hours", 14 * 86400 + 10800), ("1d", 86400), ("90 s", 90), ("1.5 hours", 5400),
        ("1 week, 2 days", 777600), ("1 hour and 30 minutes", 5400), ("3 months", 7776000), ("1 year", 31536000), ("  2 MIN  ", 120),
    ],
)  # fmt: skip
def test_periods(text: str, seconds: int) -> None:
    assert check.period_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "day", "1", "1 parsec", "x 1 day", "1 day x", "-1 day", "0 s", "1 day 2", 5, None, "9" * 400 + " years"]
)
def test_bad_periods(text: object) -> None:
    with pytest.raises(InvalidRecord, match="2 weeks 3 hours"):
        check.period_seconds(text)


@given(st.text())
def test_checks_never_raise_anything_but_invalid_record(text: str) -> None:
    for function in (check.check_metric_name, check.period_seconds, check.check_timestamp, check.check_mime, check.check_folder):
        with contextlib.suppress(InvalidRecord):
            function(text)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_what_metadata_accepts_can_be_recorded(value: object) -> None:
    from simspool.spool import records

    records.encode({"set": check.check_metadata({"k": value})})


def test_names_of_attackers_are_metadata_or_refused() -> None:
    for name in ("../x", "a/../../x", "/etc/passwd", "a b", "-rf"):
        assert check.check_name("name", name) == name
    for name in ("C:\\x", "a\0b", "a\x1b[31m", "x" * 1025, "\u202e", "~"):
        with pytest.raises(InvalidRecord):
            check.check_name("name", name)


def test_a_broken_repr_does_not_hide_the_message() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(InvalidRecord, match="Broken"):
        check.check_folder(Broken())
