"""F1, F2, F14, F15: kills and errors at every system call of scripts and of `agent sync`; many writers; two agents at once."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from checker import check_drained, check_scripts
from real_server import RealServer
from trials import HERE, Context, NotHere, Part, Stage, part, sync_at_once, until

sys.path.insert(0, str(HERE.parent / "agent"))  # kill_points lies with the agent's tests


def need_strace() -> None:
    """Raise NotHere where strace does not work."""
    if shutil.which("strace") is None:
        raise NotHere("strace is not installed: apt-get install strace")
    if subprocess.run(["strace", "-qq", "-e", "trace=none", "true"], check=False, capture_output=True).returncode:
        raise NotHere("strace may not trace here")


@part("F1", "scripts killed at random moments")
def scripts_killed(c: Context, out: Part) -> None:
    import kill_campaign

    figures = kill_campaign.campaign(c.pick(6, 60, 400), c.seed, str(c.room()))
    out.n = figures["kills"]
    out.add(calls_that_returned_true=figures["promised"])
    wrong = (("lost", "I1"), ("repeated", "I2"), ("damaged", "I1"), ("unpromised", "I4"))
    out.violations += [f"{invariant}: {figures[name]} records {name}" for name, invariant in wrong if figures[name]]


@part("F1", "a script killed at every system call")
def script_syscalls(c: Context, out: Part) -> None:
    need_strace()
    test_syscalls = script_harness()
    room = c.room() / "x"
    points = [(name, k) for name, n in test_syscalls.counts(room).items() if name != "openat" for k in range(1, n + 1)]
    for name, k in c.random("syscalls").sample(points, min(len(points), c.pick(4, 40, 10_000))):
        test_syscalls.trace(room, f"{name}:signal=KILL:when={k}", only=name)
        out.tried(_as_violations(test_syscalls, room), f"{name} {k}")


@part("F2", "a script whose system calls fail")
def script_errors(c: Context, out: Part) -> None:
    need_strace()
    test_syscalls = script_harness()
    room = c.room() / "x"
    calls = ("pwrite64", "fsync", "fdatasync", "rename", "ftruncate", "fallocate", "link", "unlink")
    points = [(name, k, error) for name, n in test_syscalls.counts(room).items() if name in calls for k in range(1, n + 1)
              for error in ("EIO", "ENOSPC")]  # fmt: skip
    # the first calls make the spool itself, and a file's bytes may fail to be saved: both are told to the caller, and end this script
    for name, k, error in c.random("errors").sample(points, min(len(points), c.pick(4, 40, 10_000))):
        test_syscalls.trace(room, f"{name}:error={error}:when={k}", only=name)
        out.tried(_as_violations(test_syscalls, room), f"{name} {k} {error}")


def script_harness() -> ModuleType:
    """Return the module that traces the recording script."""
    import test_syscalls

    return test_syscalls


def _as_violations(harness: ModuleType, room: Path) -> list[str]:
    try:
        harness.check(room)
    except AssertionError as error:
        return [f"I1: {str(error)[:300] or 'what was promised is not there, in order, once'}"]
    return []


# ---------------------------------------------------------------------- the agent


@part("F1", "`agent sync` killed at every system call of ingest and drain")
def agent_killed(c: Context, out: Part) -> None:
    need_strace()
    import kill_points

    seconds = c.pick(6, 60, 3600)
    tried, killed, violations = kill_points.campaign(c.server, c.seed, everything=c.scale == "full", seconds=seconds)
    out.n, out.violations = tried, violations
    out.add(syncs_killed=killed)


@part("F2", "`agent sync` whose system calls fail")
def agent_errors(c: Context, out: Part) -> None:
    """Named fail points are not in the code: strace makes the k-th call of a kind fail, once, or from then on."""
    need_strace()
    import kill_points

    calls = ("pwrite64", "fdatasync", "fsync", "rename", "unlink", "ftruncate", "fallocate", "mkdir", "link")
    counts = kill_points.counts(c.server)
    points = [(name, k, error, more) for name in calls for k in range(1, counts.get(name, 2) + 1)
              for error in ("EIO", "ENOSPC") for more in ("", "+")]  # fmt: skip
    chosen = c.random("agent errors").sample(points, min(len(points), c.pick(2, 20, 240)))

    def one(point: tuple[str, int, str, str]) -> list[str]:
        name, k, error, more = point
        with tempfile.TemporaryDirectory(dir=c.folder) as folder:
            case = kill_points.Case(Path(folder), c.server)
            inject = f"inject={name}:error={error}:when={k}{more}"
            done = case.sync("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={name}", "-e", inject)
            out.add(syncs_that_failed=done.returncode != 0)
            found = case.violations()
            if "Traceback" in done.stderr:
                found.append(f"harness: a traceback instead of an error: {done.stderr[-500:]}")
            return [f"{name} {k}{more} {error}: {text}" for text in found]

    with ThreadPoolExecutor(2) as pool:
        for violations in pool.map(one, chosen):
            out.tried(violations)


@part("F1", "agent, server and scripts killed at random while runs are recorded")
def everything_killed(c: Context, out: Part) -> None:
    """One spool for all rounds, so that each recovery meets what the ones before left. The server is this part's own."""
    choice = c.random("everything")
    room = c.room()
    with RealServer(room / "server") as server, Stage(room, server) as stage:
        for _ in range(c.pick(2, 8, 60)):
            scripts = [stage.script(calls=choice.choice([50, 500, 3000]), rate=choice.choice([0, 300]), files=choice.choice([0, 2]),
                                    threads=choice.choice([1, 3]), forks=choice.choice([0, 2])) for _ in range(2)]  # fmt: skip
            agent = stage.agent()
            _meanwhile(choice, server, agent, scripts, out)
            for script in scripts:
                if script.process.poll() is None and choice.random() < 0.5:
                    script.kill()
                script.wait()
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
                agent.wait()
                out.n += 1
            if server.process is None:
                server.start()
        out.violations += check_drained(stage)


def _meanwhile(choice: random.Random, server: RealServer, agent: subprocess.Popen[bytes], scripts: list[object], out: Part) -> None:
    time.sleep(choice.uniform(0.5, 2.0))
    if choice.random() < 0.6:
        server.kill()
        out.n += 1
        time.sleep(choice.uniform(0.0, 0.5))
        server.start()
        time.sleep(choice.uniform(0.2, 1.5))


# ---------------------------------------------------------------------- writers and agents


@part("F14", "many processes, threads and forks beside an agent, some killed")
def many_writers(c: Context, out: Part) -> None:
    processes = c.pick(4, 16, 64)
    with Stage(c.room(), c.server) as stage:
        stage.agent()
        scripts = [stage.script(calls=200, threads=4, forks=3) for _ in range(processes // 4)]
        for script in scripts[::3]:
            script.wait_for(50).kill()
        for script in scripts:
            script.wait()
        stage.settle()
        out.tried(check_drained(stage), f"{processes} processes")
        out.n = processes


@part("F15", "two agents at once: the first is stopped, loses the spool, and wakes up")
def two_agents(c: Context, out: Part) -> None:
    """A stopped holder keeps its kernel lock; the files are put away, as on a file system whose locks do not hold. Its lease it loses."""
    choice = c.random("two agents")
    for _ in range(c.pick(1, 3, 12)):
        with Stage(c.room(), c.server) as stage:
            script = stage.script(calls=4000, rate=1500, files=2).wait_for(5)
            hosts, short = stage.spool / "agent" / "hosts", {"SIMSPOOL_LEASE": "2"}
            first = stage.agent(env=short)
            until(lambda: any(hosts.glob("*.json")))
            script.wait_for(choice.randrange(50, 1500))
            first.send_signal(signal.SIGSTOP)
            for lock in [stage.spool / "agent" / "lock", *hosts.glob("*.lock")]:
                lock.rename(lock.with_name(f"{lock.name}.away-{choice.random()}"))
            shutil.rmtree(stage.folder / "rt")
            (stage.folder / "rt").mkdir(mode=0o700)
            second = stage.agent(env={**short, "SIMSPOOL_STATE": str(stage.folder / "another-state")})
            script.wait_for(choice.randrange(1500, 4000))
            first.send_signal(signal.SIGCONT)
            script.wait()
            time.sleep(choice.uniform(0.5, 2.0))
            stage.settle(first, second)
            out.tried(check_drained(stage))


@part("F15", "two `agent sync` at once, beside scripts")
def two_syncs(c: Context, out: Part) -> None:
    for _ in range(c.pick(1, 2, 10)):
        with Stage(c.room(), c.server) as stage:
            stage.record(2, calls=300)
            codes = [done.code for done in sync_at_once(stage, stage)]
            wrong = [] if codes == [0, 0] else [f"I8: the syncs ended with {codes}"]
            out.tried([*wrong, *check_scripts(stage.scripts), *check_drained(stage)])


# ---------------------------------------------------------------------- aborts


@part("F21", "aborts: reused pids, forks, namespaces, other hosts and boots, requests older than the process")
def aborts(c: Context, out: Part) -> None:
    if os.geteuid() != 0:
        raise NotHere("chosen pids and PID namespaces need root")
    n = c.pick(15, 60, 400)
    # a process of its own: it forks before it has threads
    command = [sys.executable, str(HERE / "abort_campaign.py"), "--seed", str(c.seed), "--n", str(n)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    figures = json.loads(done.stdout)
    out.n = figures["trials"]
    out.add(signals=figures["signals"])
    out.violations += [f"I9: a signal to a wrong process: {text}" for text in figures["wrong"]]
    out.violations += [f"I9: not aborted: {text}" for text in figures["missed"]]
