"""Programs append to inboxes while the agent that copies them is killed again and again: is each line there once, in order?

    python tests/inbox/copier_kills.py --kills 1000 --seed 1

Prints one line of JSON: kills, lines appended, epochs, and of how many epochs the lines are not all there, once, in order. With `--agent`,
whole agents are killed (about a second each); else processes that only copy.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parent)]

import recorded  # noqa: E402
from inbox_records import copied  # noqa: E402

from simspool.agent.inbox.inboxes import Inboxes  # noqa: E402
from simspool.spool import Kind, Spool, open_spool  # noqa: E402

FILES = 3


def produce(folder: str, seed: int, until: Callable[[], bool]) -> None:
    """Append to an inbox's files in pieces of any size: good lines that count up, blank and bad ones; now and then begin a file anew."""
    choice = random.Random(seed)
    counts, epochs = [0] * FILES, [1] * FILES
    files = [open(f"{folder}/f{i}.jsonl", "ab", buffering=0) for i in range(FILES)]  # noqa: SIM115
    while not until():
        i = choice.randrange(FILES)
        text = b""
        for _ in range(choice.choice((1, 1, 3, 200))):
            n = counts[i]
            form = choice.randrange(12)
            if form == 0:
                text += choice.choice((b"\n", b"nonsense\n", b'{"metrics": {"n": x}}\n', b"  \n", b'{"event": 1}\n'))
                continue
            if form == 1:
                text += json.dumps({"event": f"{epochs[i]} {n}", "level": "info"}).encode() + b"\n"
            elif form == 2:
                text += json.dumps({"event": f"{epochs[i]} {n} " + "x" * choice.choice((10, 3000, 300_000))}).encode() + b"\n"
            else:
                text += b'{"metrics": {"n": %d, "epoch": +%d.}}\n' % (n, epochs[i])
            counts[i] += 1
        cut = choice.randrange(len(text) + 1)
        files[i].write(text[:cut])
        time.sleep(choice.choice((0, 0, 0.0005, 0.002)))
        files[i].write(text[cut:])
        if i == 2 and choice.randrange(60) == 0:  # one file is written anew, or replaced by another, when it may be copied
            time.sleep(0.3)
            _note(folder, i, epochs[i], counts[i])
            if choice.randrange(2):
                files[i].truncate(0)
            else:
                files[i].close()
                os.rename(f"{folder}/f{i}.jsonl", f"{folder}/old-{i}-{epochs[i]}")
                files[i] = open(f"{folder}/f{i}.jsonl", "ab", buffering=0)  # noqa: SIM115
            counts[i], epochs[i] = 0, epochs[i] + 1
    for i, file in enumerate(files):
        file.close()
        _note(folder, i, epochs[i], counts[i])


def _note(folder: str, i: int, epoch: int, count: int) -> None:
    with open(f"{folder}/expected", "a") as f:
        f.write(json.dumps([i, epoch, count]) + "\n")


class Copier:
    """A process that copies, to be killed."""

    def __init__(self, spool: Spool, run: str) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            Inboxes(spool, lambda: {run}, lambda _: None).start()
            signal.pause()

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class WholeAgent:
    """`agent run`, to be killed."""

    def __init__(self, spool: Spool, run: str) -> None:
        environment = os.environ | {"SIMSPOOL_DIR": spool.path, "SIMSPOOL_STATE": f"{spool.path}.state", "SIMSPOOL_AGENT": "off"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "simspool.agent", "run"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()


def campaign(kills: int, seed: int, *, whole: bool = False, each: int = 40) -> dict[str, Any]:
    """Kill so often, `each` times in a run; returns the figures."""
    choice = random.Random(seed)
    began = time.monotonic()
    total: dict[str, Any] = {"kills": 0, "seed": seed, "whole": whole, "runs": 0}
    while total["kills"] < kills:
        found = _one_run(choice, min(each, kills - total["kills"]), whole=whole)
        total["runs"] += 1
        for key, value in found.items():
            total[key] = total[key] + value if key in total else value
    return total | {"examples": total["examples"][:3], "seconds": round(time.monotonic() - began, 1)}


def _one_run(choice: random.Random, kills: int, *, whole: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        spool = open_spool(f"{place}/spool", create=True)
        run, writer = recorded.begin(spool)
        folder = spool.run(run).inbox
        os.makedirs(folder)
        stop, seed = f"{place}/stop", choice.randrange(1 << 30)
        producer = os.fork()
        if producer == 0:
            produce(folder, seed, lambda: os.path.exists(stop))
            os._exit(0)
        idle = 0
        for _ in range(kills):
            copier = (WholeAgent if whole else Copier)(spool, run)
            idle += not _works(spool, run)
            time.sleep(choice.random() ** 2 * 0.1)
            copier.kill()
        Path(stop).touch()
        os.waitpid(producer, 0)
        last = Inboxes(spool, lambda: {run}, lambda _: None)
        last.copy_all()
        problems = list(last.problems.values())
        last.stop()
        writer.close({"status": "completed"})
        found = _compare(spool, run, folder)
        return {"kills": kills, "killed_idle": idle, **found, "examples": found["examples"] + problems}


def _works(spool: Spool, run: str) -> bool:
    """Wait until the copier that was just started has begun to copy."""
    known, deadline = len(spool.run(run).writer_ids()), time.monotonic() + 10
    while len(spool.run(run).writer_ids()) == known:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def _compare(spool: Spool, run: str, folder: str) -> dict[str, Any]:
    """Each epoch of a file must be there from its first line to its last; what was cut off by a truncation nobody saw may be missing."""
    expected = [json.loads(line) for line in Path(f"{folder}/expected").read_text().splitlines()]
    found: dict[tuple[int, int], list[int]] = {}
    bad = 0
    for one in copied(spool, run):
        if one.kind == Kind.EVENT and one.body.get("level") == "warning":
            bad += 1
            continue
        if one.kind == Kind.METRICS:
            epoch, n = int(one.body["values"]["epoch"]), one.body["values"]["n"]
        else:
            epoch, n = map(int, one.body["message"].split()[:2])
        found.setdefault((int(one.file[1]), epoch), []).append(n)
    wrong: list[Any] = []
    lost = 0
    for i, epoch, count in expected:
        got = found.pop((i, epoch), [])
        last = (i, epoch + 1) not in {(a, b) for a, b, _ in expected}
        if got != list(range(len(got))) or (last and len(got) != count):
            odd = next((at for at, n in enumerate(got) if at != n), len(got))
            wrong.append({"file": i, "epoch": epoch, "appended": count, "copied": len(got), "from": odd, "there": got[odd : odd + 3]})
        lost += count - len(got)
    wrong += [{"unexpected": key, "lines": len(lines)} for key, lines in found.items()]
    total = sum(count for _, _, count in expected)
    writers = len(spool.run(run).writer_ids()) - 1
    return {
        "lines": total, "epochs": len(expected), "writers": writers, "wrong": len(wrong), "examples": wrong[:3], "first_bad": bad,
        "cut_off_before_they_were_read": lost,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--agent", action="store_true")
    given = parser.parse_args()
    result = campaign(given.kills, given.seed, whole=given.agent)
    print(json.dumps(result))
    sys.exit(bool(result["wrong"]))
