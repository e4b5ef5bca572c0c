"""A story of an origin and a far spool, step by step, with a model of what must be true after each (see sides)."""

from __future__ import annotations

from pathlib import Path

from recorded import add_file, begin, fill
from sides import CARRIED_BY, SERVER, A, Side, carry

from simspool.agent.targets.settings import TargetSettings
from simspool.agent.truth.books import books
from simspool.spool import Writer

B = TargetSettings("b", "mlflow", "http://b")  # keeps the files of each record
Step = tuple[str, int, int]
STEPS: dict[str, tuple[int, int, int, int]] = {
    "record": (0, 2, 1, 30), "file": (0, 2, 0, 2), "close": (0, 2, 0, 0), "carry": (0, 2, 0, 0), "deliver": (0, 2, 0, 200),
    "receipt": (0, 0, 0, 0), "apply": (0, 9, 0, 0), "new catalog": (0, 1, 0, 0), "compact": (0, 1, 0, 0), "prune": (0, 1, 0, 0),
}  # fmt: skip
"""What may happen, and the bounds of its two numbers."""


class Story:
    """Two sides, and what must be true of them. `got` is what both servers have: run -> mark; files: keys of records."""

    def __init__(self, folder: Path) -> None:
        self.origin, self.far, self.folder = Side(folder / "origin"), Side(folder / "far"), folder
        self.far.serves(A, B)
        self.writers: list[Writer] = []
        self.runs: list[str] = []
        self.open: set[int] = set()
        self.receipts: list[tuple[bytes, dict[str, int], set[str]]] = []
        self.named: dict[str, str] = {}  # artifact record -> digest
        self.on: dict[str, set[str]] = {"a": set(), "b": set()}
        self.acknowledged: dict[str, int] = {}
        self.stored: set[str] = set()
        for n in range(3):
            run, writer = begin(self.origin.spool, f"run {n}")
            self.runs.append(run)
            self.writers.append(writer)
            self.open.add(n)

    def close(self) -> None:
        self.origin.close()
        self.far.close()

    def step(self, what: str, n: int, m: int) -> None:
        origin, far = self.origin, self.far
        if what == "record" and n in self.open:
            fill(self.writers[n], m)
        elif what == "file" and n in self.open:
            path = self.folder / f"file-{m}"
            path.write_bytes(b"content %d" % m)
            digest = add_file(origin.spool, self.runs[n], self.writers[n], path)
            self.named[f"{self.writers[n].id_text}.{self.writers[n].sequence}"] = digest
        elif what == "close" and n in self.open:
            self.open.discard(n)
            assert self.writers[n].close({"status": "completed"})
        elif what == "carry":
            self.carry(n)
        elif what == "deliver":
            self.deliver("ab"[m % 2], n, m // 2, files=m % 3 != 0)
        elif what == "receipt":
            self.receipts.append((far.receipt(origin, A, B), self.both(), self.both_stored()))
        elif what == "apply" and self.receipts:
            self.apply(*self.receipts[n % len(self.receipts)])
        elif what == "new catalog":
            side = (origin, far)[n]
            side.again(without_catalog=True)
            if side is far:
                far.serves(A, B)
            side.take_in()
        elif what == "compact":
            side = (origin, far)[n]
            side.journal.close()
            side.journal.compact()
        elif what == "prune":
            self.prune((origin, far)[n])

    def both(self) -> dict[str, int]:
        return {w.id_text: min(self.far.mark("a", w.id_text), self.far.mark("b", w.id_text)) for w in self.writers}

    def both_stored(self) -> set[str]:
        """Return the records whose files both servers have, as they were told."""
        both = {key for key, digest in self.named.items() if digest in self.on["a"] and key in self.on["b"]}
        return {key for key in both if int(key.split(".")[1]) <= self.both()[key.split(".")[0]]}

    def carry(self, n: int) -> None:
        self.origin.take_in()
        carry(self.origin, self.far, self.runs[n])
        self.far.take_in()

    def deliver(self, server: str, n: int, upto: int, *, files: bool) -> None:
        """Have a server take a writer's records up to a mark, and with `files` those of the records that it has."""
        run, writer = self.runs[n], self.writers[n].id_text
        there = self.far.recorded(run).get(writer, 0)
        mark = max(self.far.mark(server, writer), min(upto, there))
        if not mark or not self.far.spool.run(run).writer_ids():
            return
        found = self.far.catalog.rows("SELECT seq, digest FROM artifacts WHERE writer = ? AND seq <= ?", (writer, mark)) if files else []
        self.far.deliver(server, run, {writer: mark}, blobs=[d if server == "a" else f"{writer}.{seq}" for seq, d in found])
        self.on[server] |= {d if server == "a" else f"{writer}.{seq}" for seq, d in found}

    def apply(self, document: bytes, both: dict[str, int], stored: set[str]) -> None:
        applied = self.origin.apply(document)
        assert not applied.conflicts
        self.stored |= stored
        for writer, mark in both.items():
            self.acknowledged[writer] = max(self.acknowledged.get(writer, 0), mark)

    def prune(self, side: Side) -> None:
        servers = (SERVER,) if side is self.origin else ("a", "b")
        both, ended = self.both(), {self.writers[n].id_text for n in range(3) if n not in self.open}
        before = {w: n for run in self.runs for w, n in side.recorded(run).items()}
        for run in side.prune(*servers):
            writer = self.writers[self.runs.index(run)].id_text
            assert writer in ended
            assert both[writer] >= before[writer], "something went that was not delivered"

    def check(self) -> None:
        for writer in self.writers:
            assert self.origin.mark(SERVER, writer.id_text) == self.acknowledged.get(writer.id_text, 0)
        assert {key for (key,) in self.origin.catalog.rows("SELECT digest FROM uploads WHERE server = ?", (SERVER,))} == self.stored
        for side, targets in ((self.origin, [CARRIED_BY]), (self.far, [])):
            assert books(side.catalog, targets).imbalances() == []

    def end(self) -> None:
        for n in range(3):
            self.step("close", n, 0)
            self.step("carry", n, 0)
            for server in "ab":
                self.deliver(server, n, 1 << 40, files=True)
        self.step("receipt", 0, 0)
        self.apply(*self.receipts[-1])
        self.check()
        found = books(self.origin.catalog, [CARRIED_BY])
        total = found.all_records("bundle")
        assert (total.waiting, total.refused, total.lost) == (0, 0, 0)
        assert sum(account["bundle"].waiting for account in found.files.values()) == 0
        self.prune(self.origin)
        assert self.origin.spool.run_ids() == []
