"""Random histories: runs, servers that come and go, lost replies, shedding, catalogs that vanish; at the end every record is accounted for.

    python -m pytest tests/budget/test_shed_histories.py        a few; HISTORIES=200 for more
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from in_process import sync
from recorded import add_file, begin, fill
from shedding import Opened, Server, go_on, opened

from simspool.agent.catalog.store import catalog_path
from simspool.agent.status import overview
from simspool.agent.truth.known import KnownTarget
from simspool.spool import Spool, Tail

pytestmark = pytest.mark.usefixtures("small_segments")


def record_run(spool: Spool, rng: random.Random, folder: Path) -> None:
    _, writer = begin(spool)
    for _ in range(rng.randint(1, 4)):
        fill(writer, rng.randint(1, 2500), events=rng.randint(0, 1))
        if rng.random() < 0.3:
            path = folder / f"f{rng.getrandbits(40)}"
            path.write_bytes(rng.randbytes(rng.randint(1, 20_000)))
            add_file(spool, spool.run_ids()[-1], writer, path)
    writer.close({"status": "completed"})


def last_of(spool: Spool, o: Opened) -> dict[str, int]:
    return dict(o.catalog.rows("SELECT id, sequence - 1 FROM writers"))


@pytest.mark.parametrize("seed", range(int(os.environ.get("HISTORIES", "2"))))
def test_every_record_is_accounted_for(seed: int, spool: Spool, tmp_path: Path) -> None:
    rng = random.Random(seed)
    servers = [Server(f"s{n}") for n in range(2)]
    last: dict[str, int] = {}
    for _ in range(8):
        what = rng.choice(["run", "run", "sync", "sync", "shed", "shed", "whole", "forget"])
        if what == "run":
            record_run(spool, rng, tmp_path)
        elif what == "sync":
            server = rng.choice(servers)
            server.be_away_after(rng.randint(0, 3), lose=rng.random() < 0.5)
            sync(spool, server, timeout=0.1)
        elif what == "forget":
            Path(catalog_path(spool)).unlink(missing_ok=True)
        else:
            with opened(spool) as o:
                last.update(last_of(spool, o))
                for _ in range(rng.randint(1, 4)):
                    o.shedder.next(runs=what == "whole", wanted=rng.choice([1, 100_000]))
    for server in servers:
        go_on(server)
        report = sync(spool, server)
        assert (report.state, report.refused, report.problems) == ("done", 0, {})
    with opened(spool) as o:
        last.update(last_of(spool, o))
        for server in servers:
            assert {w: mark for w, (mark, _) in server.marks_of.items()} == last, "each has been told of everything"
            found = overview(o.catalog, spool, [KnownTarget("t", "simspool", server.url, server=server.server)])
            assert found["balanced"], found["imbalances"]
            records = found["records"]
            assert (records["waiting"], records["refused"], records["recorded"]) == (0, 0, sum(last.values()))
            told = sum(len(seqs) for seqs in server.gone.values())
            assert records["lost"] >= told, "never more is said to be there than is; less, where its chain does not tell"
            assert records["acknowledged"] + records["lost"] == records["recorded"]
    for run in spool.run_ids():
        for writer in spool.run(run).writer_ids():
            with Tail(spool.run(run).writer(writer), run) as tail:
                gaps = [gap for chunk in tail.read(dead=True) for gap in chunk.gaps]
            assert {reason for _, _, reason in gaps} <= {"shed"}
            there = {seq for a, b, _ in gaps for seq in range(a, b + 1)}
            for server in servers:
                assert server.gone.get(writer, set()) <= there, "nothing is declared as gone that is there"
