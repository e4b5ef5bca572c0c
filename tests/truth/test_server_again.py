"""The server's side: a refused record is taken later exactly once, and by nobody else; recounts are of what is stored."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from simspool.agent.server import drain, recount
from simspool.agent.server.database import Database
from simspool.agent.server.identity import Principal
from simspool.agent.server.ranges import Part, PreparedRange
from simspool.spool import ids
from simspool.spool.frames import Record
from simspool.spool.records import Kind

ME, OTHER = Principal("me", "t"), Principal("other", "t")
RUN, WRITER = ids.to_text(ids.new_id()), ids.to_text(ids.new_id())
BODY = {"name": "a", "category": "odd", "digest": "0" * 64, "size": 1}


def record(seq: int, body: dict[str, Any], crc: int = 7) -> Part:
    return Part(seq, seq, [crc], record=Record(Kind.ARTIFACT, 0, seq, 0, crc, body), wall=1)


def sent(*parts: Part, again: bool = False) -> PreparedRange:
    return PreparedRange(RUN, WRITER, parts[0].first, parts[-1].last, 0, list(parts), again)


@pytest.fixture
def db(tmp_path: Path) -> Any:
    database = Database(tmp_path / "server.db")
    database.close()
    connection = sqlite3.connect(tmp_path / "server.db", isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("BEGIN")
    yield connection
    connection.close()


def apply(db: sqlite3.Connection, one: PreparedRange, who: Principal = ME) -> dict[str, Any]:
    return drain.apply_ranges(db, who, [one])[0]


def test_it_is_taken_once_and_only_what_was_refused(db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    found = apply(db, sent(record(1, BODY), record(2, {**BODY, "category": "input"})))
    assert (found["verdict"], [seq for seq, _ in found["refused"]]) == ("accepted", [1])
    again = sent(record(1, BODY), again=True)
    assert apply(db, again)["refused"][0][0] == 1  # not yet
    monkeypatch.setattr("simspool.agent.server.artifacts.CATEGORIES", ("input", "odd"))
    assert apply(db, sent(record(1, BODY, crc=8), again=True))["reason"] == "conflict"
    assert apply(db, again, OTHER)["reason"] == "forbidden"
    assert apply(db, again)["taken"] == [1]
    repeated = apply(db, again)
    assert (repeated["verdict"], repeated["taken"], repeated["refused"]) == ("accepted", [], [])
    assert apply(db, sent(record(2, BODY), again=True))["taken"] == []  # it was taken as it was
    assert apply(db, sent(record(3, BODY), again=True))["verdict"] == "retry"
    assert [tuple(r) for r in db.execute("SELECT seq, count(*) FROM records GROUP BY 1")] == [(1, 1), (2, 1)]
    body = recount.of_run(db, ME, RUN, deep=True)
    assert body is not None
    assert (body["marks"], body["refused"], len(body["files"])) == ({WRITER: 2}, [], 1)  # a run has one file of a name
    assert recount.of_run(db, OTHER, RUN, deep=False) is None


def test_a_database_of_before_gets_the_list(tmp_path: Path) -> None:
    Database(tmp_path / "server.db").close()
    with sqlite3.connect(tmp_path / "server.db") as old:
        old.execute("DROP TABLE refused")
        old.execute("PRAGMA user_version = 2")
    old.close()
    Database(tmp_path / "server.db").close()
    with sqlite3.connect(tmp_path / "server.db") as new:
        assert new.execute("SELECT count(*) FROM refused").fetchone() == (0,)
    new.close()
