"""Durability settings, group commit and migrations of the server's database."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from simspool.agent.server import schema
from simspool.agent.server.database import Database, connect
from simspool.agent.server.errors import Conflict


def insert(db: sqlite3.Connection, key: str, fail: bool = False) -> str:
    db.execute("INSERT INTO meta VALUES (?, 'v')", (key,))
    if fail:
        raise Conflict("no")
    return key


def test_wal_and_full_are_set(tmp_path: Path) -> None:
    connection = connect(tmp_path / "x.db")
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    connection.close()


def test_a_database_that_cannot_be_wal_is_refused() -> None:
    with pytest.raises(RuntimeError, match="WAL"):
        connect(Path(":memory:"))


def test_grouped_writes_fail_alone_and_are_durable(tmp_path: Path) -> None:
    async def work() -> None:
        database = Database(tmp_path / "x.db")
        found = await asyncio.gather(*(database.write(insert, f"k{i}", fail=i % 3 == 0) for i in range(200)), return_exceptions=True)
        assert [isinstance(f, Conflict) for f in found] == [i % 3 == 0 for i in range(200)]
        count = await database.read(lambda db: db.execute("SELECT count(*) FROM meta WHERE key LIKE 'k%'").fetchone()[0])
        assert count == sum(i % 3 != 0 for i in range(200))
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await database.read(insert, "never")
        database.close()
        database.close()
        with pytest.raises(RuntimeError, match="closed"):
            await database.write(insert, "late")

    asyncio.run(work())
    check = sqlite3.connect(tmp_path / "x.db")
    assert check.execute("SELECT count(*) FROM meta").fetchone()[0] == 134
    assert check.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    check.close()


def test_a_cancelled_waiter_stops_nobody(tmp_path: Path) -> None:
    async def work() -> None:
        database = Database(tmp_path / "x.db")
        tasks = [asyncio.create_task(database.write(insert, f"k{i}")) for i in range(50)]
        await asyncio.sleep(0)
        tasks[7].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[7], asyncio.CancelledError) or found[7] == "k7"
        assert all(f == f"k{i}" for i, f in enumerate(found) if i != 7)
        assert await database.write(insert, "after") == "after"
        database.close()

    asyncio.run(work())


def test_a_newer_database_is_left_untouched(tmp_path: Path) -> None:
    connection = connect(tmp_path / "x.db")
    schema.migrate(connection)
    schema.migrate(connection)
    connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()
    with pytest.raises(RuntimeError, match="upgrade simspool"):
        Database(tmp_path / "x.db")
    with sqlite3.connect(tmp_path / "x.db") as check:
        assert check.execute("PRAGMA user_version").fetchone()[0] == schema.VERSION + 1
    check.close()
