"""The [budget] table and its variables: words for sizes, one error for one mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simspool.sdk.budget import DEFAULT_FLOOR, Budget, Floor, load_budget
from simspool.sdk.config import load_config
from simspool.sdk.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"bytes": "20 GB"}, Budget(bytes=20 * 10**9)),
        ({"bytes": "1.5TiB"}, Budget(bytes=3 << 39)),
        ({"bytes": "512 mib", "inodes": 100_000}, Budget(bytes=512 << 20, inodes=100_000)),
        ({"bytes": 5_000_000, "inodes": "2_000"}, Budget(bytes=5_000_000, inodes=2000)),
        ({"age": 30}, Budget(age=30 * 86400.0)),
        ({"age": "12 hours"}, Budget(age=43200.0)),
        ({"age": "2 weeks"}, Budget(age=14 * 86400.0)),
        ({"free": "5%"}, Budget(free=Floor(share=0.05))),
        ({"free": "10 GB"}, Budget(free=Floor(bytes=10**10))),
        ({"free": 0}, Budget(free=Floor())),
        ({"shed": True}, Budget(shed="data")),
        ({"shed": False}, Budget(shed="no")),
        ({"shed": "runs"}, Budget(shed="runs")),
        ({}, Budget(free=DEFAULT_FLOOR)),
    ],
)
def test_words_are_understood(given: dict[str, Any], found: Budget) -> None:
    assert load_budget(given, "simspool.toml", {}) == found
    environment = {f"SIMSPOOL_BUDGET_{key.upper()}": str(value) for key, value in given.items()}
    assert load_budget({}, "", environment) == found


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"bytes": "20 parsecs"}, "[budget] bytes in f.toml must be a size such as"),
        ({"bytes": -5}, "must be a size"),
        ({"bytes": True}, "must be a size"),
        ({"bytes": "10 kB"}, "give at least 1 MB"),
        ({"inodes": 5}, "from 100, not 5"),
        ({"inodes": "many"}, "[budget] inodes in f.toml must be a whole number"),
        ({"age": "soon"}, "[budget] age in f.toml must be a number of days"),
        ({"age": float("nan")}, "must be a number of days"),
        ({"free": "95%"}, "[budget] free in f.toml must be at most 90%"),
        ({"free": "a lot"}, 'or a share, such as "5%"'),
        ({"shed": "maybe"}, '[budget] shed in f.toml must be true, false or "runs"'),
        ({"shed": 2}, "must be true, false"),
        ({"size": 5}, "[budget] size in f.toml does not exist: there are bytes, inodes, age, free, shed"),
    ],
)
def test_a_mistake_names_file_and_key(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_budget(given, "f.toml", {})
    assert words in str(error.value)


def test_a_variable_wins_and_is_named() -> None:
    found = load_budget({"bytes": "1 GB", "shed": True}, "f.toml", {"SIMSPOOL_BUDGET_BYTES": "2 GB"})
    assert (found.bytes, found.shed) == (2 * 10**9, "data")
    with pytest.raises(ConfigError, match="SIMSPOOL_BUDGET_AGE must be a number of days"):
        load_budget({}, "", {"SIMSPOOL_BUDGET_AGE": "old"})


def test_it_is_part_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "simspool.toml").write_text('[budget]\nbytes = "3 GB"\nfree = "2%"\n')
    found = load_config(folder=str(tmp_path), environ={"HOME": str(tmp_path), "SIMSPOOL_BUDGET_INODES": "5000"}).budget
    assert found == Budget(bytes=3 * 10**9, inodes=5000, free=Floor(share=0.02))
    (tmp_path / "simspool.toml").write_text("budget = 5\n")
    with pytest.raises(ConfigError, match=r"\[budget\] in .*simspool.toml must be a table"):
        load_config(folder=str(tmp_path), environ={"HOME": str(tmp_path)})


def test_a_floor_is_a_share_with_a_bound() -> None:
    assert DEFAULT_FLOOR.of(10 << 30) == (10 << 30) // 100
    assert DEFAULT_FLOOR.of(100 << 40) == 256 << 20
    assert Floor(bytes=5, share=0.5).of(100) == 50
