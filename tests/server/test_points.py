"""The row buffer, the chunks and the summaries: whatever the batches were, the series is the same."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simspool.agent.server import points, runs, schema, summaries
from simspool.agent.server.database import connect
from simspool.agent.server.identity import Principal
from simspool.agent.server.points import PointBatch

ME = Principal("me", "t")
RUN = "0" * 22


@pytest.fixture
def db(tmp_path: Path) -> Any:
    connection = connect(tmp_path / "x.db")
    schema.migrate(connection)
    connection.execute("BEGIN")
    runs.fold(connection, ME, RUN, runs.DRAIN, [])
    yield connection
    connection.close()


def batch(names: dict[str, list[Any]], types: str, first: int, walls: list[int], stamps: list[Any] | None = None) -> PointBatch:
    n = len(walls)
    seqs = list(range(first, first + n))
    return PointBatch(tuple(names), types, seqs, walls, seqs.copy(), [s / 10 for s in seqs], stamps, [list(v) for v in names.values()])


VALUE = {"d": st.floats(), "q": st.integers(-(1 << 63), (1 << 63) - 1), "?": st.booleans(), "j": st.integers(1 << 63, 1 << 90)}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_batches_read_back_in_order_before_and_after_folding(db: sqlite3.Connection, data: Any) -> None:
    points.forget(db, RUN)
    expected = []
    for writer in data.draw(st.lists(st.sampled_from("abc"), unique=True, min_size=1)):
        seq, wall = 1, data.draw(st.integers(0, 50))
        for size in data.draw(st.lists(st.integers(1, 6), max_size=5)):
            types = data.draw(st.sampled_from(["d", "q", "?", "j", "dq", "qd"]))
            columns = {name: [data.draw(VALUE[t]) for _ in range(size)] for name, t in zip("xy", types, strict=False)}
            walls = [wall + i * 7 for i in range(size)]
            stamps = data.draw(st.none() | st.just([w + 10**12 for w in walls]))
            points.append(db, RUN, writer, [batch(columns, types, seq, walls, stamps)])
            expected += [(w, writer, seq + i, columns["x"][i], stamps) for i, w in enumerate(walls)]
            seq, wall = seq + size, wall + size * 7
    expected.sort(key=lambda e: e[:3])

    def check() -> None:
        found = points.read(db, RUN, "x")
        assert list(map(repr, found.values)) == [repr(e[3]) for e in expected]
        assert found.steps == [e[2] for e in expected]
        assert found.stamps == [e[0] + 10**12 if e[4] else e[0] // 1000 for e in expected]

    check()
    db.execute("UPDATE runs SET ended = 1")
    while points.fold(db):
        pass
    db.execute("UPDATE runs SET ended = NULL")
    assert db.execute("SELECT count(*) FROM buffer").fetchone()[0] == 0
    check()
    if expected:
        summary = summaries.of_run(db, RUN)["x"]
        assert summary["count"] == len(expected)
        finite = [float(e[3]) for e in expected if math.isfinite(e[3])]
        assert summary["min"] == (min(finite) if finite else None)
        assert summary["max"] == (max(finite) if finite else None)
        assert summary["nan"] == sum(e[3] != e[3] for e in expected)
        assert summary["count"] == len(finite) + summary["nan"] + summary["infinite"]


def test_enough_small_batches_are_folded_while_the_run_lives(db: sqlite3.Connection) -> None:
    for i in range(points.FOLD_BATCHES):
        points.append(db, RUN, "a", [batch({"x": [float(i)]}, "d", i + 1, [i])])
    assert points.foldable(db)
    assert points.fold(db) == 1
    assert db.execute("SELECT count(*), sum(rows) FROM chunks").fetchone()[:] == (1, points.FOLD_BATCHES)
    assert points.read(db, RUN, "x").values == [float(i) for i in range(points.FOLD_BATCHES)]


def test_a_run_of_a_hundred_thousand_calls_takes_few_bytes_each(db: sqlite3.Connection) -> None:
    n = 100_000
    walls = [10**18 + i * 1_000_000 for i in range(n)]
    points.append(db, RUN, "a", [batch({"loss": [1 / (i + 1) for i in range(n)], "n": list(range(n))}, "dq", 1, walls)])
    size = (
        db.execute("SELECT sum(length(axes)) FROM chunks").fetchone()[0] + db.execute("SELECT sum(length(body)) FROM columns").fetchone()[0]
    )
    assert size / n < 11
    assert summaries.of_run(db, RUN)["n"]["last"] == n - 1


def test_sums_that_overflow_are_no_error(db: sqlite3.Connection) -> None:
    for _ in range(2):
        points.append(db, RUN, "a", [batch({"x": [1.7e308] * 100, "y": [-1.7e308] * 100}, "dd", 1, list(range(100)))])
    assert summaries.of_run(db, RUN)["x"]["count"] == 200
