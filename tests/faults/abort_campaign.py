"""Whom does an abort signal? Trials of reused pids, forks, re-parented children, containers, stale requests, other boots, zombies.

    python tests/faults/abort_campaign.py --seed S --n 1000

Every trial has a run to be aborted and processes that must not be signalled. Every signal that the ladder sends is looked at: the
kernel says whose pidfd it went through. Prints the figures as one line of JSON; exit status 1 when a wrong process was signalled, or a
right one lives.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from abort_stage import Stage, rewrite_header

from simspool.agent.abort.follow import RunFollower
from simspool.agent.abort.requests import Aborts
from simspool.agent.live import LiveWriter
from simspool.agent.notes import RunNotes
from simspool.sdk.config import Graces
from simspool.spool import Kind, RunFolder, Spool, Writer, ids, open_spool
from simspool.spool.control import make_request, put_request
from simspool.spool.process import start_ticks, this_host

GRACES = Graces(0.3, 0.6, 0.3)
Who = tuple[int, int]  # pid, start ticks


@dataclass
class Trial:
    """A run, who must not be signalled, who must be gone, and what happens at which moment (s) after the request."""

    kind: str
    run: str
    spared: set[Who] = field(default_factory=set)
    ended: set[Who] = field(default_factory=set)
    later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    request: bool = True


@dataclass
class Figures:
    """What a campaign found."""

    seed: int
    trials: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    signals: int = 0
    wrong: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return them as JSON."""
        return {
            "seed": self.seed, "trials": self.trials, "kinds": dict(sorted(self.kinds.items())), "signals": self.signals,
            "wrong_process_signalled": len(self.wrong), "right_process_left": len(self.missed),
            "wrong": self.wrong[:20], "missed": self.missed[:20],
        }  # fmt: skip


class Trials:
    """Makes trials of every kind."""

    def __init__(self, spool: Spool, stage: Stage, rng: random.Random) -> None:
        self.spool, self.stage, self.rng = spool, stage, rng

    def make(self, kind: str) -> Trial:
        """Make one."""
        made = getattr(self, kind.replace("-", "_"))()
        made.kind = kind
        return made

    def _folder(self, run: str) -> RunFolder:
        return self.spool.run(run)

    def _new(self) -> str:
        return ids.to_text(ids.new_id())

    def _victim(self, **options: Any) -> tuple[str, dict[str, Any]]:
        run = self._new()
        return run, self.stage.ask("victim", spool=self.spool.path, run=run, **options)

    def _bystander(self, pid: int = 0) -> Who:
        return _who(self.stage.ask("bystander", pid=pid))

    def _replaced(self, trial: Trial, pid: int, *, reap: bool = True) -> None:
        """A process ends, and an innocent one gets its pid at once."""
        with contextlib.suppress(RuntimeError):  # the ladder was faster
            self.stage.ask("kill", pid=pid, reap=reap)
        trial.spared.add(self._bystander(pid))

    def pid_reused_before(self) -> Trial:
        run, told = self._victim()
        trial = Trial("", run)
        time.sleep(0.02)  # beyond a tick: two processes of one pid and one tick cannot be told apart
        self._replaced(trial, told["process"][0])
        return trial

    def pid_reused_meanwhile(self) -> Trial:
        run, told = self._victim()
        trial = Trial("", run)
        trial.later.append((self.rng.uniform(0, 1.0), lambda: self._replaced(trial, told["process"][0])))
        return trial

    def childs_pid_reused(self) -> Trial:
        run, told = self._victim(children=2, ignore_children=True)
        trial = Trial("", run, ended={_who(told["process"]), _who(told["children"][1])})
        trial.later.append((self.rng.uniform(0, 0.9), lambda: self._replaced(trial, told["children"][0][0])))
        return trial

    def children_in_mode_run(self) -> Trial:
        run, told = self._victim(children=2, options={"abort_on_alert": "run"})
        return Trial("", run, spared={_who(told["process"]), *map(_who, told["children"])})

    def mode_ignore(self) -> Trial:
        run, told = self._victim(children=1, options={"abort_on_alert": "ignore"})
        return Trial("", run, spared={_who(told["process"]), *map(_who, told["children"])})

    def siblings(self) -> Trial:
        """Processes of the same parent, before and after it."""
        before = self._bystander()
        run, told = self._victim(children=2)
        return Trial("", run, spared={before, self._bystander()}, ended={_who(told["process"]), *map(_who, told["children"])})

    def reparented(self) -> Trial:
        """A daemon that the script made and left is nobody's child any more."""
        run, told = self._victim(children=1, daemon=True)
        return Trial("", run, spared=set(map(_who, told["daemon"])), ended={_who(told["process"]), *map(_who, told["children"])})

    def container(self) -> Trial:
        run = self._new()
        told = self.stage.ask("contained", spool=self.spool.path, run=run)
        return Trial("", run, spared={_who(told["process"])})

    def containers_pid_is_somebodys(self) -> Trial:
        run, told = self._victim()
        innocent = self._bystander()
        rewrite_header(
            self.spool, run, told["writer"], pid=innocent[0], start_ticks=innocent[1], pid_namespace=this_host().pid_namespace + 1
        )
        return Trial("", run, spared={innocent, _who(told["process"])})

    def other_boot(self) -> Trial:
        run, told = self._victim()
        innocent = self._bystander()
        rewrite_header(self.spool, run, told["writer"], pid=innocent[0], start_ticks=innocent[1], boot_id=self.rng.randbytes(16))
        return Trial("", run, spared={innocent, _who(told["process"])})

    def other_host(self) -> Trial:
        run, told = self._victim()
        innocent = self._bystander()
        other = {"host": "elsewhere", "machine": self.rng.randbytes(16)}
        rewrite_header(self.spool, run, told["writer"], pid=innocent[0], start_ticks=innocent[1], **other)
        return Trial("", run, spared={innocent, _who(told["process"])})

    def stale_request(self) -> Trial:
        """The request was made before this process opened the run."""
        run = self._new()
        folder = self._folder(run)
        os.makedirs(folder.writers)
        put_request(folder, make_request(folder, os.urandom(16).hex(), "stale", by="user"))
        told = self.stage.ask("victim", spool=self.spool.path, run=run, children=1)
        return Trial("", run, spared={_who(told["process"]), *map(_who, told["children"])}, request=False)

    def zombie(self) -> Trial:
        run, told = self._victim()
        self.stage.ask("kill", pid=told["process"][0], reap=False)
        return Trial("", run, spared={self._bystander(), _who(told["process"])})

    def foreign_pid_reused(self) -> Trial:
        foreign = self._bystander()
        run, told = self._victim(options={"abort_on_alert": "run"}, foreign=list(foreign))
        trial = Trial("", run, spared={_who(told["process"])})
        time.sleep(0.02)
        if self.rng.random() < 0.5:
            self._replaced(trial, foreign[0])
        else:
            trial.later.append((self.rng.uniform(0, 1.0), lambda: self._replaced(trial, foreign[0])))
        return trial

    def tree_of_an_earlier_agent(self) -> Trial:
        """An agent noted whom it asked to end; then it was gone, and so was one of them, whose pid an innocent has now."""
        child = self._bystander()
        run, told = self._victim()
        trial = Trial("", run, ended={_who(told["process"])}, request=False)
        folder = self._folder(run)
        request = make_request(folder, os.urandom(16).hex(), "earlier", by="user", writers=(told["writer"],))
        put_request(folder, request)
        agent = Writer(folder.writers, ids.from_text(run))
        agent.record(Kind.ATTACH, {"reason": "agent"})
        tree = [told["process"], list(child)]
        agent.record(Kind.ABORT, {"id": request.id, "state": "signalled", "pid": told["process"][0], "signal": 15, "tree": tree})
        agent.close({"status": None})
        time.sleep(0.02)
        self._replaced(trial, child[0])
        return trial


KINDS = (
    "pid-reused-before", "pid-reused-meanwhile", "childs-pid-reused", "children-in-mode-run", "mode-ignore", "siblings", "reparented",
    "container", "containers-pid-is-somebodys", "other-boot", "other-host", "stale-request", "zombie", "foreign-pid-reused",
    "tree-of-an-earlier-agent",
)  # fmt: skip


def campaign(seed: int, n: int, *, batch: int = 60) -> Figures:
    """Run about `n` trials, `batch` at a time under one ladder."""
    rng, figures = random.Random(seed), Figures(seed)
    signal.set_wakeup_fd(-1)
    while figures.trials < n:
        folder = tempfile.mkdtemp(prefix="simspool-aborts-")
        stage = Stage()  # before there are threads
        try:
            spool = open_spool(os.path.join(folder, "spool"), create=True)
            trials = Trials(spool, stage, rng)
            kinds = [KINDS[(figures.trials + i) % len(KINDS)] for i in range(min(batch, n - figures.trials))]
            _run(spool, [trials.make(kind) for kind in kinds], figures)
        finally:
            stage.close()
            shutil.rmtree(folder)
    return figures


def _run(spool: Spool, trials: list[Trial], figures: Figures) -> None:
    followers = {t.run: RunFollower(spool.run(t.run)) for t in trials}

    def live() -> list[LiveWriter]:
        found = []
        for follower in followers.values():
            follower.read()
            found += follower.live()
        return found

    notes = RunNotes(spool)
    with _observed(trials) as seen:
        aborts = Aborts(spool, notes, live, graces=GRACES)
        aborts.start()
        try:
            for trial in trials:
                if trial.request:
                    aborts.request(trial.run, os.urandom(16).hex(), "trial", by="user")
            _let_it_happen(trials)
            deadline = time.monotonic() + 15
            while (aborts.ladder.is_busy or any(_lives(who) for t in trials for who in t.ended)) and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            aborts.stop()
            notes.close()
            for follower in followers.values():
                follower.close()
    figures.signals += seen.count
    figures.wrong += seen.wrong
    for trial in trials:
        figures.trials += 1
        figures.kinds[trial.kind] += 1
        for who in trial.spared:
            if trouble := _touched(who, zombie=trial.kind == "zombie"):
                figures.wrong.append(f"{trial.kind}: {who[0]} {trouble}")
        figures.missed += [f"{trial.kind}: {who[0]}" for who in trial.ended if _lives(who)]


def _let_it_happen(trials: list[Trial]) -> None:
    began = time.monotonic()
    for delay, action in sorted(((d, a) for t in trials for d, a in t.later), key=lambda pair: pair[0]):
        time.sleep(max(0.0, began + delay - time.monotonic()))
        action()
    time.sleep(max(0.0, began + GRACES.answer + GRACES.term + 0.8 - time.monotonic()))


@dataclass
class _Seen:
    trials: list[Trial]
    count: int = 0
    wrong: list[str] = field(default_factory=list)


@contextlib.contextmanager
def _observed(trials: list[Trial]) -> Iterator[_Seen]:
    """Look at each signal that this process sends through a pidfd, just before it is sent."""
    real, seen, lock = signal.pidfd_send_signal, _Seen(trials), threading.Lock()

    def send(fd: int, number: int, *rest: Any) -> None:
        with open(f"/proc/self/fdinfo/{fd}") as f:
            pid = next(int(line.split()[1]) for line in f if line.startswith("Pid:"))
        found = start_ticks(pid) if pid > 0 else None
        with lock:
            seen.count += 1
            if found is not None and any((pid, found[0]) in t.spared for t in trials):
                seen.wrong.append(f"signal {number} to {pid}")
        real(fd, number, *rest)

    signal.pidfd_send_signal = send
    try:
        yield seen
    finally:
        signal.pidfd_send_signal = real


def _who(pair: list[int]) -> Who:
    return pair[0], pair[1]


def _lives(who: Who) -> bool:
    found = start_ticks(who[0])
    return found is not None and found[0] == who[1] and found[1] not in "ZX"


def _touched(who: Who, *, zombie: bool) -> str:
    """Say what happened to a process to which nothing may happen."""
    found = start_ticks(who[0])
    if found is None or found[0] != who[1]:
        return "is gone"
    if found[1] in "ZX" and not zombie:
        return "was ended"
    if found[1] in "Tt":
        return "was stopped"
    with open(f"/proc/{who[0]}/status") as f:
        pending = next(line.split()[1] for line in f if line.startswith("ShdPnd:"))
    return f"has signals waiting ({pending})" if int(pending, 16) & ~(1 << (signal.SIGKILL - 1)) else ""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--n", type=int, default=1000)
    given = parser.parse_args()
    if os.geteuid() != 0:
        print("chosen pids and namespaces need root", file=sys.stderr)
        return 2
    figures = campaign(given.seed, given.n)
    print(json.dumps(figures.as_dict()))
    return 1 if figures.wrong or figures.missed else 0


if __name__ == "__main__":
    sys.exit(main())
