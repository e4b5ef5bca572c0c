"""The catalog's tables and how older ones become current, by sqlite-utils' migrations.

sqlite-utils pulls in pandas where that is installed (70 MB), for work that is needed once: so a file is migrated by a child process,
`python -m simspool.agent.catalog.schema PATH`.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys

VERSION = 6


class ForeignSchema(Exception):
    """Raised when a file has tables of a version that this one does not know."""


def migrate(connection: sqlite3.Connection, path: str | None) -> None:
    """Bring the tables up to VERSION. Repeating it is harmless; each step is one transaction. `path` is None for one in memory."""
    if _is_current(connection):
        return
    if connection.execute("PRAGMA user_version").fetchone()[0] > VERSION:
        raise ForeignSchema(f"the catalog {path} was made by a newer simspool")
    if path is None or "sqlite_utils" in sys.modules:
        _apply(connection)
        return
    done = subprocess.run([sys.executable, "-I", "-m", __spec__.name, path], capture_output=True, text=True, check=False)
    if done.returncode != 0 or not _is_current(connection):
        last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        raise sqlite3.OperationalError(f"the catalog {path} could not be brought up to date: {last[-500:]}")


def _is_current(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("PRAGMA user_version").fetchone()[0] == VERSION)


def _apply(connection: sqlite3.Connection) -> None:
    from sqlite_utils import Database, Migrations

    migrations = Migrations("simspool-catalog")
    migrations(name="0001_initial")(_initial)
    migrations(name="0002_notifications")(_notifications)
    migrations(name="0003_targets")(_targets)
    migrations(name="0004_shed")(_shed)
    migrations(name="0005_refusals")(_refusals)
    migrations(name="0006_rewinds")(_rewinds)
    migrations.apply(Database(connection, execute_plugins=False))
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _initial(db: object) -> None:
    from sqlite_utils import Database

    assert isinstance(db, Database)
    text, integer, real = str, int, float
    db["meta"].create({"key": text, "value": text}, pk="key")
    db["runs"].create(
        {
            "id": text, "name": text, "folder": text, "status": text, "tags": text, "metadata": text, "state": text, "created": integer,
            "ended": integer, "modified": integer, "seen": integer, "complete": integer,
        },
        pk="id", not_null={"seen", "complete"}, defaults={"seen": 0, "complete": 0},
    )  # fmt: skip
    db["runs"].create_index(["name"])
    db["writers"].create(
        {
            "id": text, "run": text, "segment": integer, "offset": integer, "sequence": integer, "chain": integer, "header": bytes,
            "complete": integer, "closed": integer, "drops": text, "role": text,
        },
        pk="id", not_null={"run", "segment", "offset", "sequence", "chain", "complete", "closed"},
    )  # fmt: skip
    db["writers"].create_index(["run"])
    db["writers"].create_index(["complete"])
    db["pieces"].create(
        {"writer": text, "first": integer, "last": integer, "segment": integer, "start": integer, "end": integer, "chain": integer,
         "gaps": text, "irregular": integer},
        pk=("writer", "first"),
    )  # fmt: skip
    db["definitions"].create({"writer": text, "segment": integer, "shape": integer, "body": text}, pk=("writer", "segment", "shape"))
    db["metrics"].create({"run": text, "name": text, "count": integer, "last": text, "step": integer, "wall": integer}, pk=("run", "name"))
    db["events"].create({"run": text, "count": integer, "last": text, "wall": integer}, pk="run")
    db["artifacts"].create(
        {"writer": text, "seq": integer, "run": text, "name": text, "category": text, "digest": text, "size": integer, "mime": text},
        pk=("writer", "seq"),
    )  # fmt: skip
    db["artifacts"].create_index(["run"])
    db["artifacts"].create_index(["digest"])
    db["damage"].create(
        {"writer": text, "segment": integer, "kind": text, "start": integer, "end": integer, "first": integer, "last": integer},
        pk=("writer", "segment", "start", "kind"),
    )  # fmt: skip
    db["cursors"].create(
        {"server": text, "writer": text, "mark": integer, "chain": integer, "segment": integer, "offset": integer, "at": real,
         "blocked": text},
        pk=("server", "writer"),
    )  # fmt: skip
    db["refused"].create({"server": text, "writer": text, "seq": integer, "reason": text}, pk=("server", "writer", "seq"))
    db["uploads"].create({"server": text, "digest": text, "state": text, "reason": text, "at": real}, pk=("server", "digest"))
    db["servers"].create({"url": text, "server": text, "seen": real}, pk="url")
    db["journal"].create({"writer": text, "sequence": integer, "closed": integer}, pk="writer")
    db["pruned"].create({"run": text, "at": real, "last": text}, pk="run")


def _notifications(db: object) -> None:
    """What people are to be told of, and what each channel has said of it."""
    from sqlite_utils import Database

    assert isinstance(db, Database)
    text, integer = str, int
    db["notices"].create({"id": text, "run": text, "event": text, "at": integer, "body": text}, pk="id", not_null={"run", "event", "at"})
    db["notices"].create_index(["at"])
    db["notices"].create_index(["run"])
    db["told"].create(
        {"id": text, "channel": text, "run": text, "state": text, "rank": integer, "attempt": integer, "digest": text, "error": text,
         "first": integer, "at": integer},
        pk=("id", "channel"),
    )  # fmt: skip
    db["told"].create_index(["run"])


def _targets(db: object) -> None:
    """What targets note for themselves, requests whose end is not known, and what targets have not taken as it was recorded."""
    from sqlite_utils import Database

    assert isinstance(db, Database)
    text, integer = str, int
    db["ids"].create({"server": text, "key": text, "value": text}, pk=("server", "key"))
    db["intents"].create({"server": text, "writer": text, "first": integer, "last": integer}, pk=("server", "writer"))
    db["remarks"].create(
        {"server": text, "writer": text, "first": integer, "what": text, "detail": text, "run": text, "count": integer},
        pk=("server", "writer", "first", "what", "detail"),
    )  # fmt: skip
    db["remarks"].create_index(["run"])


def _shed(db: object) -> None:
    """What was deleted without a receipt, as the user wanted it (docs/budgets.md). `done` is 0 until the bytes are gone.

    A span: `marks` is JSON {server: mark} of the servers that had a part of it. Segment 0 is all that the writer had.
    """
    from sqlite_utils import Database

    assert isinstance(db, Database)
    text, integer, real = str, int, float
    db["shed"].create(
        {"writer": text, "segment": integer, "first": integer, "last": integer, "run": text, "bytes": integer, "marks": text,
         "at": real, "done": integer},
        pk=("writer", "segment"),
    )  # fmt: skip
    db["shed"].create_index(["run"])
    db["shed_files"].create(
        {"writer": text, "digest": text, "run": text, "size": integer, "at": real, "done": integer}, pk=("writer", "digest")
    )
    db["shed_files"].create_index(["digest"])


def _refusals(db: object) -> None:
    """What users said of what targets refused: given up, or to be sent again (`sent`: it is under way, and its end is not known).

    Given up: a writer's rest (seq 0), one record, or a file (`key`, without a writer).
    """
    from sqlite_utils import Database

    assert isinstance(db, Database)
    text, integer, real = str, int, float
    db["given_up"].create(
        {"server": text, "writer": text, "seq": integer, "key": text, "reason": text, "at": real}, pk=("server", "writer", "seq", "key")
    )
    db["again"].create({"server": text, "writer": text, "seq": integer, "sent": integer}, pk=("server", "writer", "seq"))


def _rewinds(db: object) -> None:
    """In which generation of the spool's lease a server's cursor went back: receipts of earlier ones do not move it on."""
    from sqlite_utils import Database

    assert isinstance(db, Database)
    text, integer = str, int
    db["rewinds"].create({"server": text, "writer": text, "generation": integer}, pk=("server", "writer"))


def main() -> int:
    """Migrate the file that the command line names."""
    connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
    try:
        _apply(connection)
    finally:
        connection.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
