"""A "host" of the campaign: process 1 of a PID namespace, which starts an agent and ranks there as it is told, one line of JSON a wish."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable

from simspool.agent.app import Agent, AgentConfig
from simspool.agent.drain.backoff import Backoff
from simspool.sdk import Run
from simspool.spool import open_spool


class Host:
    """What is told to do: agent, signal, ranks, small, wait, done."""

    def __init__(self) -> None:
        self._agent = 0
        self._ranks: list[int] = []

    def agent(self) -> bool:
        """Start an agent, unless one lives. True when one was started."""
        if self._lives():
            return False
        self._agent = _forked(agent, os.environ["SHARED_LOG"])
        return True

    def _lives(self) -> bool:
        if self._agent and os.waitpid(self._agent, os.WNOHANG)[0]:
            self._agent = 0
        return self._agent != 0

    def signal(self, number: int) -> bool:
        """Send the agent a signal; wait for its end where that is sure. False when there is none."""
        if not self._lives():
            return False
        os.kill(self._agent, number)
        if number == signal.SIGKILL:
            os.waitpid(self._agent, 0)
            self._agent = 0
        return True

    def namespace(self) -> int:
        """Return the namespace's number."""
        return os.stat("/proc/self/ns/pid").st_ino

    def end(self) -> int:
        """End the agent, and return its code."""
        if not self._lives():
            return 0
        os.kill(self._agent, signal.SIGTERM)
        pid, self._agent = self._agent, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def ranks(self, run: str, first: int, count: int, points: int) -> int:
        """Start processes that record into one run."""
        for rank in range(first, first + count):
            self._ranks.append(_forked(lambda rank=rank: _record(run, rank, points)))  # type: ignore[misc]
        return len(self._ranks)

    def small(self, name: str, points: int) -> int:
        """Start a process that records a run of its own."""
        self._ranks.append(_forked(lambda: _record_alone(name, points)))
        return len(self._ranks)

    def wait(self) -> list[int]:
        """Wait for the processes that record, and return their codes."""
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self._ranks]
        self._ranks.clear()
        return codes


def _forked(work: Callable[[], None], log: str | None = None) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        if log is not None:
            said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(said, 1)
            os.dup2(said, 2)
        work()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _record(run_id: str, rank: int, points: int) -> None:
    run = Run(mode="offline")
    assert run.reconnect(run_id)
    for step in range(points):
        assert run.log_metrics({f"rank{rank:02d}": float(rank * 1_000_000 + step)}, step=step)
    run.close()


def _record_alone(name: str, points: int) -> None:
    with Run(mode="offline") as run:
        assert run.init(name)
        for step in range(points):
            assert run.log_metrics({"alone": float(step)}, step=step)


def agent() -> None:
    """Do what `agent run` does, and delete what is acknowledged at once, not after a week."""
    env = os.environ
    config = AgentConfig(
        open_spool(env["SIMSPOOL_DIR"]), env["SIMSPOOL_URL"], env["SIMSPOOL_TOKEN"], grace=0.0, retention_every=1.0,
        patience=float(env["SIMSPOOL_LEASE"]),
    )  # fmt: skip

    async def day() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with Agent(config, report=lambda text: print(os.getpid(), text, flush=True), backoff=Backoff(lambda: 0.05)) as one:
            await one.serve(stop)

    asyncio.run(day())


def main() -> int:
    """Do as told, until the input ends."""
    host = Host()
    for line in sys.stdin:
        wish = json.loads(line)
        answer = getattr(host, wish.pop("do"))(**wish)
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
