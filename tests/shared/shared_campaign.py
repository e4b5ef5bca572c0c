"""Two hosts' agents on one spool, stopped, continued and killed at random, while ranks on both hosts record one run.

    python tests/shared/shared_campaign.py --rounds 100 --ranks 64 --points 10000 --seed 1 [--sshfs]

The hosts are PID namespaces (root): each agent sees of the other's processes what another host's would see. With --sshfs each has a mount
of its own over the SFTP protocol. After each round everything is counted on the server; and of what was deleted from the spool, the
journal must have the receipts of every record.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parent / "faults")]

from real_server import RealServer  # noqa: E402

from simspool.agent.catalog import Catalog  # noqa: E402
from simspool.agent.journal import Journal  # noqa: E402
from simspool.sdk import Run  # noqa: E402
from simspool.spool import Spool, open_spool  # noqa: E402
from simspool.spool.lease import LINE  # noqa: E402

PATIENCE = 3.0  # s: that of the lease
_LONGEST = 300.0  # s for a round's end


def why_not() -> str:
    """Return why the campaign cannot run here, or nothing."""
    if os.geteuid() != 0:
        return "PID namespaces need root"
    if shutil.which("unshare") is None:
        return "there is no unshare"
    done = subprocess.run(["unshare", "-p", "-f", "--mount-proc", "true"], capture_output=True, check=False)
    return "" if done.returncode == 0 else f"PID namespaces cannot be made here: {done.stderr.decode()[-200:]}"


@dataclass
class Tally:
    """What a campaign has seen. `wrong` has a line for each violation."""

    rounds: int = 0
    points: int = 0
    stops: int = 0
    longer: int = 0
    kills: int = 0
    terms: int = 0
    generations: int = 0
    deleted: int = 0
    kept: int = 0
    wrong: list[str] = field(default_factory=list)


class Host:
    """A PID namespace with an agent and ranks."""

    def __init__(self, name: str, spool: Path, room: Path, server: RealServer) -> None:
        self.name, self.stopped_until, self.namespace = name, 0.0, 0
        room.mkdir()
        (room / "rt").mkdir(mode=0o700)
        self.log = room / "agent.log"
        environment = {
            **os.environ, **server.environment, "SIMSPOOL_DIR": str(spool), "SIMSPOOL_STATE": str(room / "state"), "HOME": str(room),
            "XDG_RUNTIME_DIR": str(room / "rt"), "SIMSPOOL_LEASE": str(PATIENCE), "SIMSPOOL_AGENT": "off", "SHARED_LOG": str(self.log),
        }  # fmt: skip
        command = ["unshare", "-p", "-f", "--mount-proc", "--kill-child", sys.executable, str(HERE / "shared_host.py")]
        with open(room / "host.log", "wb") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=room
            )
        self._host_log = room / "host.log"

    def tell(self, do: str, **wish: Any) -> Any:
        """Have it do something, and return what it answers."""
        self.begin(do, **wish)
        return self.answer()

    def begin(self, do: str, **wish: Any) -> None:
        """Have it do something; `answer` waits for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **wish}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Return what it answers."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the host {self.name} ended: {self._host_log.read_text()[-2000:]}"
        return json.loads(line)

    def close(self) -> None:
        """End it, and with it all that lives there."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


@contextlib.contextmanager
def disk(room: Path, sshfs: bool) -> Iterator[list[Path]]:
    """Yield where the spool lies for the campaign, and for each of two hosts."""
    if not sshfs:
        yield [room / "spool"] * 3
        return
    from fault_places import network_disk

    with network_disk(room / "disk", room / "a", room / "b"):
        yield [room / "disk" / "spool", room / "a" / "spool", room / "b" / "spool"]


def one_round(room: Path, server: RealServer, choice: random.Random, tally: Tally, *, ranks: int, points: int, sshfs: bool) -> None:
    """Record, disturb, let it come to rest, and count."""
    with disk(room, sshfs) as (here, *there), contextlib.ExitStack() as stack:
        spool = open_spool(here, create=True)
        hosts = [Host(name, path, room / f"host-{name}", server) for name, path in zip("xy", there, strict=True)]
        for host in hosts:
            stack.callback(host.close)
            host.tell("agent")
            host.namespace = host.tell("namespace")
        until(lambda: len(list((here / "agent" / "hosts").glob("*.json"))) == 2, "both agents")
        os.environ["SIMSPOOL_DIR"] = str(here)
        creator = Run(mode="offline")
        assert creator.init("shared", folder="/shared")
        run = str(creator.id)
        half = ranks // 2
        hosts[0].tell("ranks", run=run, first=0, count=half, points=points)
        hosts[1].tell("ranks", run=run, first=half, count=ranks - half, points=points)
        names = []
        end = time.monotonic() + choice.uniform(12, 20)
        while time.monotonic() < end:
            disturb(hosts, spool, choice, tally)
            if len(names) < 8:
                names.append(f"small-{len(names)}")
                choice.choice(hosts).tell("small", name=names[-1], points=50)
            time.sleep(choice.uniform(0.05, 0.8))
        for host in hosts:
            codes = host.tell("wait")
            if any(codes):
                tally.wrong.append(f"ranks on {host.name} ended with {codes}")
        assert creator.close()
        for _ in range(choice.randrange(8)):
            disturb(hosts, spool, choice, tally)
            time.sleep(choice.uniform(0.05, 0.8))
        rest(hosts, spool)
        for host in hosts:
            host.tell("end")
        check(spool, server, run, ranks, points, names, tally)
    tally.rounds += 1


def until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def holder(hosts: list[Host], spool: Spool) -> Host | None:
    """Return the host whose agent has the lease, as its file says."""
    found = [name for name in os.listdir(spool.agent) if name.startswith("lease-")]
    for name in sorted(found, key=lambda name: int(name[6:-6]))[-1:]:
        with contextlib.suppress(OSError, ValueError):
            body = json.loads(Path(spool.agent, name).read_bytes()[:LINE])
            return next((host for host in hosts if host.namespace == body["pid_namespace"]), None)
    return None


def disturb(hosts: list[Host], spool: Spool, choice: random.Random, tally: Tally) -> None:
    """Do one thing to one agent, more often to the one that has the lease; continue those that were stopped for long enough."""
    now = time.monotonic()
    for host in hosts:
        if host.stopped_until and host.stopped_until <= now:
            host.stopped_until = 0.0
            host.tell("signal", number=signal.SIGCONT)
    host = choice.choice([*hosts, holder(hosts, spool) or hosts[0]])
    if host.stopped_until:
        return
    what = choice.choices(["stop", "kill", "term", "start"], [5, 2, 1, 4])[0]
    if what == "stop":
        length = choice.choice([choice.uniform(0.05, PATIENCE), choice.uniform(1.2, 3.0) * PATIENCE])
        if host.tell("signal", number=signal.SIGSTOP):
            host.stopped_until = now + length
            tally.stops += 1
            tally.longer += length > PATIENCE
    elif what == "start":
        host.tell("agent")
    else:
        done = host.tell("signal", number=signal.SIGKILL if what == "kill" else signal.SIGTERM)
        tally.kills += done and what == "kill"
        tally.terms += done and what == "term"


def rest(hosts: list[Host], spool: Spool) -> None:
    """Let both agents live, until nothing of the spool is left to send or to delete, or nothing moves any more."""
    deadline = time.monotonic() + _LONGEST
    while time.monotonic() < deadline:
        for host in hosts:
            if host.stopped_until:
                host.stopped_until = 0.0
                host.tell("signal", number=signal.SIGCONT)
            host.tell("agent")
        if not [name for name in os.listdir(spool.runs) if not name.startswith(".tmp")]:
            return
        time.sleep(0.25)


def check(spool: Spool, server: RealServer, run: str, ranks: int, points: int, names: list[str], tally: Tally) -> None:
    """Count on the server; compare what was deleted with the receipts."""
    for rank in range(ranks):
        found = server.points(run, f"rank{rank:02d}")
        wanted = [(step, float(rank * 1_000_000 + step)) for step in range(points)]
        tally.points += len(found)
        if sorted(found) != wanted:
            steps = [step for step, _ in found]
            lost, twice = set(range(points)).difference(steps), len(steps) - len(set(steps))
            tally.wrong.append(f"round {tally.rounds}: rank {rank}: {len(lost)} lost, {twice} twice, {len(found)} found")
    catalog = Catalog(None)
    try:
        Journal(spool, catalog).close()
        [row] = catalog.rows("SELECT DISTINCT server FROM cursors")[:1] or [("",)]
        marks = dict(catalog.rows("SELECT writer, mark FROM cursors WHERE server = ?", row))
        pruned = {one: json.loads(last) for one, last in catalog.rows("SELECT run, last FROM pruned")}
        tally.generations += int((catalog.one("SELECT value FROM meta WHERE key = 'generation'") or (0,))[0])
    finally:
        catalog.close()
    there = set(spool.run_ids())
    tally.deleted += len(pruned.keys() - there)
    tally.kept += len(there)
    for one, last in pruned.items():
        for writer, sequence in last.items():
            if sequence > marks.get(writer, 0):
                had = marks.get(writer, 0)
                tally.wrong.append(f"round {tally.rounds}: {one} was pruned up to {sequence} of {writer}, with receipts up to {had}")
    if run not in there and run not in pruned:
        tally.wrong.append(f"round {tally.rounds}: run {run} is gone, and no prune was journaled")
    known = {r["name"]: r["id"] for r in server.get("/runs", count=10_000)["data"]}
    for name in names:
        one = next((i for n, i in known.items() if n == name), "")
        found = server.points(one, "alone") if one else []
        if sorted(found) != [(step, float(step)) for step in range(50)]:
            tally.wrong.append(f"round {tally.rounds}: {name} has {len(found)} of 50 points")


def campaign(room: Path, *, rounds: int, ranks: int, points: int, seed: int, sshfs: bool = False, say: Any = print) -> Tally:
    """Do rounds; each has a server of its own, and its spool is deleted where nothing was wrong."""
    tally, choice = Tally(), random.Random(seed)
    for n in range(rounds):
        at, began, before = room / f"round-{n}", time.monotonic(), len(tally.wrong)
        at.mkdir()
        with RealServer(at / "server") as server:
            one_round(at, server, choice, tally, ranks=ranks, points=points, sshfs=sshfs)
        say(f"round {n}: {time.monotonic() - began:.0f} s, {tally}")
        if len(tally.wrong) == before:
            shutil.rmtree(at, ignore_errors=True)
    return tally


def main() -> int:
    """Run it from the command line; prints the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sshfs", action="store_true")
    options = parser.parse_args()
    os.environ["SIMSPOOL_AGENT"] = "off"
    why = why_not()
    if why:
        print(why)
        return 1
    room = Path(tempfile.mkdtemp(prefix="shared-"))
    tally = campaign(
        room, rounds=options.rounds, ranks=options.ranks, points=options.points, seed=options.seed, sshfs=options.sshfs,
        say=lambda text: print(text, flush=True),
    )  # fmt: skip
    print(f"{'ok' if not tally.wrong else 'WRONG'}: {tally}")
    if tally.wrong:
        print(f"what it left: {room}")
    else:
        shutil.rmtree(room, ignore_errors=True)
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
