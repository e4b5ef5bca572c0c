"""Journals of several hosts' agents: in the order of the lease's generations, followed while they are written, and fenced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from recorded import whole

from simspool.agent.catalog import Catalog
from simspool.agent.ingest import Ingest
from simspool.agent.journal import Cursor, Journal, NotHolder
from simspool.agent.retention import GOING, Retention
from simspool.spool import Spool, ids
from simspool.spool.lease import Holder, Lease

SERVER = "server"


class Side:
    """One host's agent: its catalog, lease and journal."""

    def __init__(self, spool: Spool, name: str) -> None:
        holder = Holder(name, f"host-{name}", b"m" * 16, b"b" * 16, 1, 10, 100)
        self.spool, self.now = spool, 0.0
        self.lease = Lease(spool, clock=lambda: self.now, me=holder, lives=lambda _: None)
        self.catalog = Catalog(None)
        self.journal = Journal(spool, self.catalog, lease=self.lease)

    def mark(self, writer: str) -> int:
        """Return how far the server has a writer, as this side knows."""
        row = self.catalog.one("SELECT mark FROM cursors WHERE server = ? AND writer = ?", (SERVER, writer))
        return int(row[0]) if row else 0

    def take(self) -> None:
        """Have the lease, as it was silent for so long."""
        for _ in range(100):
            self.now += 5.0
            if self.lease.turn():
                return
        raise AssertionError("the lease is not to be had")


@pytest.fixture
def sides(spool: Spool) -> Iterator[tuple[Side, Side]]:
    """Two hosts' agents; the first has the lease."""
    a, b = Side(spool, "a"), Side(spool, "b")
    a.take()
    yield a, b
    for side in (a, b):
        side.journal.close()
        side.catalog.close()


def anew(spool: Spool, writer: str) -> int:
    """Return what a catalog that is built anew knows."""
    catalog = Catalog(None)
    Journal(spool, catalog, lease=Lease(spool)).close()
    [row] = catalog.rows("SELECT mark FROM cursors WHERE writer = ?", (writer,)) or [(0,)]
    catalog.close()
    return int(row[0])


def receipt(side: Side, writer: str, mark: int) -> None:
    side.journal.receive(SERVER, 1.0, [Cursor(writer, mark, mark, 1, mark)])


def test_what_another_agent_journals_is_followed(sides: tuple[Side, Side]) -> None:
    a, b = sides
    assert b.journal.follow() == 0
    receipt(a, "w", 10)
    assert b.journal.follow() > 0
    assert b.mark("w") == 10
    receipt(a, "w", 20)
    b.journal.follow()
    assert b.mark("w") == 20
    assert b.journal.follow() == 0


def test_only_the_holder_sends_deletes_and_compacts(sides: tuple[Side, Side]) -> None:
    a, b = sides
    a.journal.intend(SERVER, [("w", 1, 2)])
    for forbidden in (
        lambda: b.journal.intend(SERVER, [("w", 1, 2)]), lambda: b.journal.prune("0" * 22, 1.0, {}), b.journal.compact, b.journal.require
    ):  # fmt: skip
        with pytest.raises(NotHolder, match="another agent has the lease"):
            forbidden()
    b.take()
    b.journal.intend(SERVER, [("w", 1, 2)])
    with pytest.raises(NotHolder):
        a.journal.intend(SERVER, [("w", 3, 4)])


def test_a_receipt_that_comes_too_late_does_not_undo_a_rewind(sides: tuple[Side, Side], spool: Spool) -> None:
    """The first holder is suspended with an answer on its way; the server is restored from a backup; the next holder notices."""
    a, b = sides
    receipt(a, "w", 50)
    b.take()
    b.journal.follow()
    b.journal.rewind(SERVER, Cursor("w", 20, 20, 1, 20))
    receipt(a, "w", 100)  # true when it was said
    b.journal.follow()
    a.journal.follow()
    assert b.mark("w") == 20
    assert anew(spool, "w") == 20
    receipt(b, "w", 60)
    a.journal.follow()
    assert (a.mark("w"), b.mark("w"), anew(spool, "w")) == (60, 60, 60)


def test_the_order_is_that_of_the_generations_whatever_the_hosts_clocks_say(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second holder's wall clock is a day behind: its writer's id is the smaller one."""
    a, b = Side(spool, "a"), Side(spool, "b")
    a.take()
    receipt(a, "w", 50)
    b.take()
    real = ids.new_id
    monkeypatch.setattr(ids, "new_id", lambda: (int.from_bytes(real(), "big") - (86_400_000 << 80)).to_bytes(16, "big"))
    b.journal.follow()
    b.journal.rewind(SERVER, Cursor("w", 20, 20, 1, 20))
    monkeypatch.setattr(ids, "new_id", real)
    first, second = sorted(os.listdir(Path(spool.agent, "w")))
    assert b.journal._writer is not None
    assert first == b.journal._writer.id_text < second
    assert anew(spool, "w") == 20
    for side in (a, b):
        side.journal.close()
        side.catalog.close()


def test_checkpoints_of_another_agent_take_the_place_of_what_was_not_read_to_its_end(sides: tuple[Side, Side], spool: Spool) -> None:
    a, b = sides
    a.journal.receive(SERVER, 1.0, [Cursor("w", 5, 5, 1, 5)], refused=[("w", 3, "bad")])
    b.journal.follow()
    assert b.catalog.rows("SELECT seq FROM refused") == [(3,)]
    a.journal.receive(SERVER, 2.0, taken=[("w", 3)])
    a.journal.close()
    a.journal.compact()  # what b has not read of the old writer is gone
    b.journal.follow()
    assert b.catalog.rows("SELECT seq FROM refused") == []
    assert (b.mark("w"), anew(spool, "w")) == (5, 5)


def taken_in(side: Side) -> None:
    ingest = Ingest(side.spool, side.catalog, learn=side.journal.follow)
    ingest.scan()
    while ingest.read().more:
        pass
    ingest.close()


def acknowledged(side: Side) -> None:
    """Journal receipts for all that there is."""
    rows = side.catalog.rows("SELECT id, sequence - 1 FROM writers")
    side.journal.receive(SERVER, 1.0, [Cursor(w, last, 1, 1, 1) for w, last in rows])


def test_a_holder_that_was_suspended_deletes_nothing(sides: tuple[Side, Side], spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each step of a prune: the next holder takes back what was begun, and a server that was restored gets everything again."""
    a, b = sides
    run = whole(spool)
    taken_in(a)
    acknowledged(a)
    old, new = Retention(spool, a.catalog, a.journal, 0.0), Retention(spool, b.catalog, b.journal, 0.0)
    assert old.eligible(SERVER) == [run]
    real = a.journal.prune

    def suspended(*arguments: object) -> None:
        """The run has another name by now, and nothing is journaled."""
        assert [name for name in os.listdir(spool.runs) if name.startswith(GOING)]
        b.take()
        b.journal.follow()
        new.finish()
        taken_in(b)
        [(writer,)] = b.catalog.rows("SELECT id FROM writers")
        b.journal.rewind(SERVER, Cursor(writer, 1, 1, 1, 1))
        assert os.listdir(spool.runs) == [run]
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(a.journal, "prune", suspended)
    with pytest.raises((NotHolder, FileNotFoundError)):
        old.prune(run, SERVER)
    assert os.listdir(spool.runs) == [run]
    assert new.eligible(SERVER) == []
    with pytest.raises(NotHolder):
        old.prune(run, SERVER)
    with pytest.raises(NotHolder):
        old.finish()


def test_a_run_that_another_agent_pruned_is_no_loss(sides: tuple[Side, Side], spool: Spool) -> None:
    a, b = sides
    run = whole(spool)
    taken_in(a)
    acknowledged(a)
    said: list[str] = []
    ingest = Ingest(spool, b.catalog, report=said.append, learn=b.journal.follow)
    ingest.scan()
    going = os.path.join(spool.runs, f"{GOING}{run}-a")
    os.rename(spool.run(run).path, going)
    ingest.scan()  # in the middle of it
    os.rename(going, spool.run(run).path)
    assert Retention(spool, a.catalog, a.journal, 0.0).prune(run, SERVER)
    ingest.scan()
    ingest.close()
    assert said == []
    assert b.catalog.rows("SELECT run FROM pruned") == [(run,)]


def test_a_command_without_the_lease_journals_behind_what_it_knows(spool: Spool) -> None:
    """`agent dead drop` after a sync: the decision is of the generation whose receipt it is about, also in a catalog that is built anew."""
    a = Side(spool, "a")
    a.take()
    a.journal.receive(SERVER, 1.0, [Cursor("w", 5, 5, 1, 5)], refused=[("w", 3, "bad")])
    a.journal.close()
    command = Journal(spool, a.catalog, lease=Lease(spool))  # the same host's catalog
    command.give_up(SERVER, 2.0, [("w", 3, "", "bad")])
    command.close()
    a.catalog.close()
    catalog = Catalog(None)
    Journal(spool, catalog, lease=Lease(spool)).close()
    assert catalog.rows("SELECT seq FROM refused") == []
    assert catalog.rows("SELECT seq FROM given_up") == [(3,)]
    catalog.close()
