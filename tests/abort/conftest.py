"""Victims that are real processes, and a ladder with short graces that looks after them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from own_state import own_state  # noqa: F401 - autouse

from simspool.agent.abort.follow import RunFollower
from simspool.agent.abort.requests import Aborts
from simspool.agent.abort.words import tell
from simspool.agent.live import LiveWriter
from simspool.agent.notes import RunNotes
from simspool.sdk.config import Graces
from simspool.sdk.process_tree import identify, is_gone
from simspool.spool import Spool, open_spool

VICTIM = Path(__file__).with_name("victim.py")
FAST = Graces(0.4, 1.0, 0.4)


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "spool"))
    return open_spool(tmp_path / "spool", create=True)


class Victim:
    """A process of victim.py; its identity is taken while it lives."""

    def __init__(self, spool: Spool, behaviour: str, **options: Any) -> None:
        arguments = json.dumps({"spool": spool.path, "behaviour": behaviour, **options})
        self.popen = subprocess.Popen([sys.executable, str(VICTIM), arguments], stdout=subprocess.PIPE, text=True)
        told = json.loads(self.popen.stdout.readline())
        self.run, self.writer, self.pid = told["run"], told["writer"], told["pid"]
        self.process = identify(self.pid)
        self.children = [identify(pid) for pid in told["children"]]
        assert self.process is not None
        assert None not in self.children

    @property
    def is_gone(self) -> bool:
        self.popen.poll()
        return is_gone(self.process)

    @property
    def tree_is_gone(self) -> bool:
        return self.is_gone and all(is_gone(c) for c in self.children)

    def end(self) -> None:
        for process in [self.process, *self.children]:
            if not is_gone(process):
                os.kill(process.pid, 9)
        self.popen.wait(10)
        self.popen.stdout.close()


class World:
    """A spool with victims, and one agent's aborts at a time."""

    def __init__(self, spool: Spool) -> None:
        self.spool, self.victims, self.reports = spool, list[Victim](), list[str]()
        self.notes: RunNotes | None = None
        self.aborts: Aborts | None = None
        self._followers: dict[str, RunFollower] = {}
        self._lock = threading.Lock()
        self.extra: list[LiveWriter] = []

    def live(self) -> list[LiveWriter]:
        self.feed()
        return [w for follower in self._followers.values() for w in follower.live()] + self.extra

    def begin(self, graces: Graces = FAST, bell: str | None = None) -> Aborts:
        self.notes = RunNotes(self.spool)
        self.aborts = Aborts(self.spool, self.notes, self.live, graces=graces, bell=bell, report=self.reports.append)
        self.aborts.start()
        self._close()
        return self.aborts

    def _close(self) -> None:
        with self._lock:
            for follower in self._followers.values():
                follower.close()
            self._followers.clear()

    def end(self) -> None:
        if self.aborts is not None:
            self.aborts.stop()
            self.notes.close()
            self.aborts = None
        self._close()

    def victim(self, behaviour: str, **options: Any) -> Victim:
        self.victims.append(Victim(self.spool, behaviour, **options))
        return self.victims[-1]

    def words(self, run: str) -> list[dict[str, Any]]:
        """All records of kind 35 of a run, in order of time."""
        folder = self.spool.run(run)
        found = [word for writer in folder.writer_ids() for word in tell(folder, writer).words]
        return [dict(word.body) for word in sorted(found, key=lambda w: w.boot)]

    def states(self, run: str) -> list[str]:
        found = [word["state"] for word in self.words(run)]
        # the request is sent before it is recorded: a script may note first that it has it
        return ["requested", "received", *found[2:]] if found[:2] == ["received", "requested"] else found

    def feed(self) -> None:
        """Do what the watch does: hand on what the scripts' writers say."""
        with self._lock:
            for run in self.spool.run_ids():
                follower = self._followers.setdefault(run, RunFollower(self.spool.run(run)))
                for told, word in follower.read():
                    if told.is_script and self.aborts is not None:
                        self.aborts.heard(run, word.writer, word.body, word.boot)

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition; the test's own timeout ends one that hangs."""
        while not condition():
            self.feed()
            time.sleep(0.02)

    def rest(self, seconds: float = 1.5) -> None:
        """Let so much time pass that whatever is wrongly due happens."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)


@pytest.fixture
def world(spool: Spool) -> Iterator[World]:
    made = World(spool)
    try:
        yield made
    finally:
        with contextlib.suppress(RuntimeError):
            made.end()
        for victim in made.victims:
            victim.end()


