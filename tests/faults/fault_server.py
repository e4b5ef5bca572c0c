"""F11, F12, F17: servers that fail, hang, lie, forget; many agents at once; records that a server never takes."""

from __future__ import annotations

import heapq
import random
import shutil
import statistics
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hostile
from checker import check_drained, check_scripts, check_server
from real_server import RealServer
from trials import Context, Part, Stage, part

from simspool.agent.drain.backoff import Backoff
from simspool.spool import layout


def _schedule(choice: random.Random, fault: str, rate: float) -> Callable[[str, str, int], str]:
    """A connection is let through; of what follows, some requests meet the fault, the first one surely."""
    seen: Counter[str] = Counter()

    def choose(_method: str, path: str, _n: int) -> str:
        last = path.rsplit("/", 1)[-1]
        seen[last] += 1
        if fault in hostile.LIES and last != "drain":
            return "ok"
        first = last == "drain" and seen[last] == 1
        return fault if first or (last != "server" and choice.random() < rate) else "ok"

    return choose


@part("F11", "hostile servers: each fault, then all of them at random")
def hostile_servers(c: Context, out: Part) -> None:
    faults = [*hostile.ALL, *(["all"] * c.pick(1, 2, 20))]
    rounds = [(fault, number) for number in range(c.pick(1, 1, 4)) for fault in faults]
    if c.scale == "sample":
        rounds = c.random("sample").sample(rounds, 5)

    server = c.server

    def one(which: tuple[str, int]) -> tuple[str, list[str], int]:
        fault, number = which
        choice = c.random(f"hostile {fault} {number}")

        def anything(_method: str, _path: str, _n: int) -> str:
            return choice.choice(hostile.ALL) if choice.random() < 0.4 else "ok"

        schedule = anything if fault == "all" else _schedule(choice, fault, 0.3)
        with hostile.Hostile(server.url, schedule) as proxy, Stage(c.room(), server) as stage:
            stage.record(2, calls=120, files=1, size=300_000)
            done = stage.sync("env", f"SIMSPOOL_URL={proxy.url}", options=("--timeout", "90"))
            wrong = [] if done.code == 0 else [f"I1: not drained through the fault in 90 s: {done.output[-300:]}{done.errors[-200:]}"]
            wrong += check_scripts(stage.scripts)
            # then without the fault: nothing is left to send, and nothing is there twice
            return fault, [*wrong, *check_drained(stage)], proxy.body_bytes

    with ThreadPoolExecutor(3) as pool:
        for fault, wrong, sent in pool.map(one, rounds):
            out.tried(wrong, fault)
            out.add(MB_sent=sent / 1e6)


@part("F11", "a server restored from an old backup, at random moments, under a running agent")
def old_backups(c: Context, out: Part) -> None:
    choice = c.random("backups")
    for _ in range(c.pick(1, 2, 12)):
        room = c.room()
        with RealServer(room / "server") as server, Stage(room, server) as stage:
            stage.record(calls=choice.randrange(20, 300), files=1)
            stage.sync()
            script = stage.script(calls=2000, rate=800, files=1)
            agent = stage.agent()
            script.wait_for(choice.randrange(50, 800))
            server.kill()
            backup = room / "backup"
            shutil.copytree(server.data, backup)
            server.start()
            script.wait_for(choice.randrange(900, 1600))
            server.kill()
            shutil.rmtree(server.data)
            shutil.copytree(backup, server.data)
            server.start()
            script.wait()
            stage.settle(agent)
            out.tried(check_drained(stage))


@part("F11", "a server that is killed again and again under a running agent")
def killed_server(c: Context, out: Part) -> None:
    choice, room = c.random("killed server"), c.room()
    with RealServer(room / "server") as server, Stage(room, server) as stage:
        script = stage.script(calls=c.pick(1500, 6000, 60_000), rate=500, files=2)
        stage.agent()
        for _ in range(c.pick(2, 6, 60)):
            script.wait_for(sum(script.said.tried.values()) + choice.randrange(50, 400))
            server.kill()
            server.start()
            out.n += 1
        script.kill() if script.process.poll() is None else None
        stage.settle()
        out.violations += check_drained(stage)


# ---------------------------------------------------------------------- F12


@part("F12", "retry storm: many agents wait for one server (simulated time, the real backoff)")
def retry_storm(c: Context, out: Part) -> None:
    """The server is away for an hour, then answers 50 requests a second; the rest are told 503."""
    agents = c.pick(200, 1000, 10_000)
    choice = c.random("storm")
    back, capacity = 3600.0, 50
    queue: list[tuple[float, int]] = []
    waits = [Backoff(choice.random) for _ in range(agents)]
    for number in range(agents):
        heapq.heappush(queue, (choice.random(), number))
    arrivals: Counter[int] = Counter()
    served: list[float] = []
    busy: Counter[int] = Counter()
    while queue:
        now, number = heapq.heappop(queue)
        arrivals[int(now)] += 1
        if now >= back and busy[int(now)] < capacity:
            busy[int(now)] += 1
            served.append(now - back)
            continue
        heapq.heappush(queue, (now + max(waits[number].failed(), 0.001), number))
    out.n = agents
    steady = agents / 25  # a second, when each waits 25 s on average
    peak = max(n for second, n in arrivals.items() if second > 300)
    half = statistics.median(served)
    out.add(peak_requests_per_s=peak, mean_requests_per_s=steady, until_half_are_served_s=half, until_all_are_s=max(served))
    if peak > 2 * steady + 30:
        out.violations.append(f"harness: {peak} requests in one second where {steady:.0f} are the mean: the waits are not spread")


# ---------------------------------------------------------------------- F17


@part("F17", "records that a server never takes, among good ones")
def poison(c: Context, out: Part) -> None:
    """The writer is named in the ranges' heads: the proxy refuses whatever has it, with 422 and without a verdict."""
    for _ in range(c.pick(1, 2, 12)):
        with Stage(c.room(), c.server) as stage:
            stage.record(4, calls=150, files=1)
            bad = stage.scripts[c.random(f"poison {out.n}").randrange(4)]
            [writer] = layout.list_writers(str(Path(stage.spool, "runs", bad.said.run, "w")))
            mark = f'"writer":"{writer}"'.encode()
            with hostile.Hostile(c.server.url, lambda _m, _p, _n: "ok", lambda body, mark=mark: mark in body) as proxy:  # type: ignore[misc]
                codes = []
                for _again in range(2):
                    done = stage.sync("env", f"SIMSPOOL_URL={proxy.url}", options=("--timeout", "60"))
                    codes.append((done.code, done.report.get("refused", 0) > 0, done.report.get("records_left")))
            good = [s.said for s in stage.scripts if s is not bad]
            wrong = [] if codes == [(4, True, 0)] * 2 else [f"I4: the refusal is not told: {codes}: {done.output[-300:]}"]
            wrong += check_server(c.server, stage.spool, good)
            if c.server.get(f"/runs/{bad.said.run}") is not None:
                wrong.append("I2: what was refused is there")
            out.tried(wrong)
