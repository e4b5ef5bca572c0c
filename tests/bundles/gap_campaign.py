"""Two network namespaces that never see each other: a simulation in the first, servers in the second, bundles and receipts between them.

    python tests/bundles/gap_campaign.py --rounds 12 --seed 1 [--json FILE]        (root; with MLFLOW_PYTHON a real MLflow server as well)

While a simulation of several processes and REBOUND's solar system record in the first, a bundle is made in each round and carried by
`cp -r`: some are lost, some altered, some come twice, some after later ones, some have their makers killed. Receipts are carried back, some
lost, some late. In the end every point is on the servers exactly once, the first spool is pruned, and `agent verify --all` is clean.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).parents[1] / "targets"))

from real_server import RealServer

_EXAMPLES = Path(__file__).parents[2] / "examples"
_INSIDE = "SIMSPOOL_GAP_CAMPAIGN"
_RANKS = 4
_SIMULATION = """
import multiprocessing as mp, sys, time
import numpy as np
from simspool.sdk import Run

RANKS, STEPS, CELLS, allowed = int(sys.argv[1]), int(sys.argv[2]), 64, 0

def rank(run, me, left, right):
    heat = np.zeros(CELLS + 2)
    heat[1] = 100.0 if me == 0 else 0.0
    global allowed
    for step in range(STEPS):
        while step >= allowed:  # as far as the campaign's round lets it
            time.sleep(0.005)
            allowed = int(open("allowed").read() or 0)
        for end, cell in ((left, 1), (right, CELLS)):
            if end is not None:
                end.send(heat[cell])
        heat[0] = left.recv() if left is not None else heat[1]
        heat[-1] = right.recv() if right is not None else heat[CELLS]
        heat[1:-1] += 0.2 * (heat[2:] - 2 * heat[1:-1] + heat[:-2])
        assert run.log_metrics({f"rank{me}.heat": float(heat[1:-1].sum())}, step=step)
        time.sleep(0.003)
    name = f"rank{me}.npy"
    np.save(name, heat)
    assert run.save_file(name, category="output")

if __name__ == "__main__":
    with Run(mode="offline") as run:
        run.init("heat", metadata={"ranks": RANKS})
        pipes = [mp.Pipe() for _ in range(RANKS - 1)]
        context = mp.get_context("fork")
        ends = [(pipes[n - 1][1] if n else None, pipes[n][0] if n < RANKS - 1 else None) for n in range(RANKS)]
        ranks = [context.Process(target=rank, args=(run, n, *ends[n])) for n in range(RANKS)]
        for one in ranks: one.start()
        for one in ranks: one.join()
        assert all(one.exitcode == 0 for one in ranks)
"""
_PRUNE = """
import asyncio, sys, time
from dataclasses import replace
from simspool.agent.app import Agent, agent_config
from simspool.agent.targets.settings import load_targets
from simspool.sdk.config import load_config
from simspool.spool import open_spool

async def main(path):
    spool = open_spool(path)
    config = agent_config(spool, None, None, load=lambda: load_targets(spool, load_config(spool=path)))
    config = replace(config, grace=0.0, retention_every=1.0)
    stop = asyncio.Event()
    async with Agent(config) as agent:
        serving = asyncio.create_task(agent.serve(stop))
        deadline = time.monotonic() + 60
        while spool.run_ids() and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        stop.set()
        await serving
    print(len(spool.run_ids()))

asyncio.run(main(sys.argv[1]))
"""


class Side:
    """One side of the gap: its network namespace, its folder, its commands."""

    def __init__(self, folder: Path, *, apart: bool, **env: str) -> None:
        folder.mkdir()
        self.folder, self.carried, self._holder = folder, folder / "carried", None
        self.carried.mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SIMSPOOL_", "SIMVUE_", "XDG_"))}
        self.env = {
            **kept, "HOME": str(folder), "SIMSPOOL_STATE": str(folder / "state"), "SIMSPOOL_DIR": str(folder / "spool"),
            "SIMSPOOL_AGENT": "off", **env,
        }  # fmt: skip
        if apart:
            self._holder = subprocess.Popen(["unshare", "--net", "sleep", "100000"])

    def command(self, *words: object) -> list[str]:
        """Return what runs a command on this side."""
        inside = [] if self._holder is None else ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net"]
        return [*inside, *map(str, words)]

    def start(self, *words: object, folder: Path | None = None) -> subprocess.Popen[str]:
        """Start a Python program here."""
        return subprocess.Popen(
            self.command(sys.executable, *words), env=self.env, cwd=folder or self.carried, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def python(self, *words: object) -> str:
        """Run a Python program here to its end."""
        process = self.start(*words)
        out, err = process.communicate(timeout=600)
        if process.returncode:
            raise AssertionError(f"{words[:4]}: {process.returncode}\n{err[-3000:]}")
        return out

    def agent(self, *words: object, codes: tuple[int, ...] = (0,)) -> list[dict[str, Any]]:
        """Run an `agent` command here; return its lines of JSON."""
        process = self.start("-m", "simspool.agent", *words, "--json")
        out, err = process.communicate(timeout=600)
        if process.returncode not in codes:
            raise AssertionError(f"agent {' '.join(map(str, words))}: {process.returncode}\n{out[-2000:]}{err[-3000:]}")
        return [json.loads(line) for line in out.splitlines()]

    def close(self) -> None:
        """Let the namespace go."""
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()


class Gap:
    """What is carried over the gap, and how badly."""

    def __init__(self, here: Side, there: Side, chance: random.Random) -> None:
        self.here, self.there, self._chance = here, there, chance
        self.seen: Counter[str] = Counter()
        self._late: list[Path] = []
        self._receipts: list[Path] = []

    def round(self) -> None:
        """Make a bundle, and have something happen to it."""
        chance = self._chance
        if chance.random() < 0.2:
            self._kill_a_maker()
        [made] = self.here.agent("bundle", "create", *(("--volume-size", "200 kB") if chance.random() < 0.5 else ()))
        if made["nothing_new"]:
            self.seen["nothing new"] += 1
            return
        fate = chance.choice(("well", "well", "lost", "altered", "twice", "late", "volume lost", "import killed"))
        self.seen[fate] += 1
        if fate == "lost":
            return
        path = self._carry(Path(made["path"]))
        if fate == "late":
            self._late.append(path)
            return
        if fate == "altered":
            self._alter(path)
        if fate == "volume lost":
            (path / "volume-0001").unlink()
        if fate == "import killed":
            process = self.there.start("-m", "simspool.agent", "bundle", "import", path)
            time.sleep(chance.random())
            process.kill()
            process.communicate()
        found = self.there.agent("bundle", "import", path, codes=(0, 8) if fate == "altered" else (8,) if fate == "volume lost" else (0,))
        if fate == "altered" and not found[0]["exit_code"]:
            [shown] = self.there.agent("bundle", "show", "--verify", path, codes=(8,))
            assert all(": the file " in why for why in shown["altered"]), shown  # it was there already, and was not read
            self.seen["altered, not needed"] += 1
        self.seen["new on the other side"] += sum(not one["nothing_new"] for one in found)
        if fate == "twice":
            [again] = self.there.agent("bundle", "import", path)
            assert again["nothing_new"], again
        if self._late and chance.random() < 0.5:
            [old] = self.there.agent("bundle", "import", self._late.pop(0))
            self.seen["older than what was there: new"] += not old["nothing_new"]

    def receipt(self) -> None:
        """Drain there, and carry a receipt back: this one, an older one, none."""
        self.there.agent("sync")
        [made] = self.there.agent("bundle", "receipt")
        self._receipts.append(self.there.carried / made["path"])
        fate = self._chance.choice(("well", "well", "lost", "older"))
        self.seen[f"receipt {fate}"] += 1
        if fate != "lost":
            path = self._receipts[-1] if fate == "well" else self._chance.choice(self._receipts)
            shutil.copy(path, self.here.carried / "receipt")
            self.here.agent("bundle", "apply-receipt", self.here.carried / "receipt")

    def last(self) -> dict[str, Any]:
        """Bring over what is left, and the receipt of it all."""
        [made] = self.here.agent("bundle", "create")
        if not made["nothing_new"]:
            self.there.agent("bundle", "import", self._carry(Path(made["path"])))
        for path in self._late:
            self.there.agent("bundle", "import", path)
        self.there.agent("sync")
        [made] = self.there.agent("bundle", "receipt")
        shutil.copy(self.there.carried / made["path"], self.here.carried / "last")
        [applied] = self.here.agent("bundle", "apply-receipt", self.here.carried / "last")
        return applied

    def _carry(self, path: Path) -> Path:
        target = self.there.carried / path.name
        subprocess.run(["cp", "-r", path, target], check=True)
        return target

    def _alter(self, path: Path) -> None:
        volume = self._chance.choice(sorted(path.glob("volume-*")))
        data = bytearray(volume.read_bytes())
        at = self._chance.randrange(4, len(data) - 3)
        data[at : at + 4] = (byte ^ 0xFF for byte in data[at : at + 4])  # several: zstd has bits that mean nothing
        volume.write_bytes(data)

    def _kill_a_maker(self) -> None:
        process = self.here.start("-m", "simspool.agent", "bundle", "create")
        time.sleep(2 * self._chance.random())
        process.kill()
        process.communicate()
        self.seen["maker killed"] += 1


def campaign(folder: Path, rounds: int, seed: int, steps: int) -> dict[str, Any]:
    """Do it all in a folder; return the figures. Raises AssertionError for anything lost, doubled or different."""
    chance, began = random.Random(seed), time.monotonic()
    here = Side(folder / "here", apart=True)
    try:
        with RealServer(folder / "server") as server:
            token = folder / "token"
            token.write_text(server.token)
            token.chmod(0o600)
            there = Side(folder / "there", apart=False, SIMSPOOL_URL=server.url, SIMSPOOL_TOKEN_FILE=str(token))
            mlflow = _mlflow(folder, there)
            probe = f"import socket; s = socket.socket(); s.settimeout(5); print(s.connect_ex(('127.0.0.1', {server.port})) != 0)"
            assert here.python("-c", probe).strip() == "True", "the two sides see each other"
            try:
                figures = _told(here, there, server, chance, rounds, steps)
            finally:
                if mlflow is not None:
                    mlflow.close()
    finally:
        here.close()
    return {"seed": seed, "rounds": rounds, "mlflow": mlflow is not None, **figures, "seconds": round(time.monotonic() - began)}


def _mlflow(folder: Path, there: Side) -> Any:
    if not os.environ.get("MLFLOW_PYTHON"):
        return None
    from mlflow_bench import MLflowServer

    found = MLflowServer(folder / "mlflow")
    there.python("-c", "from simspool.spool import open_spool; import os; open_spool(os.environ['SIMSPOOL_DIR'], create=True)")
    there.agent("target", "add", "ml", "mlflow", found.url)
    return found


def _told(here: Side, there: Side, server: RealServer, chance: random.Random, rounds: int, steps: int) -> dict[str, Any]:
    work = here.folder / "work"
    work.mkdir()
    program = work / "simulation.py"
    program.write_text(_SIMULATION)
    allowed = work / "allowed"
    allowed.write_text("0")
    running = [here.start(program, _RANKS, steps, folder=work)]
    running.append(here.start(_EXAMPLES / "orbits.py", "--years", 200, "--steps", 300, folder=work))
    deadline = time.monotonic() + 60
    while not (here.folder / "spool" / "runs").is_dir():
        assert time.monotonic() < deadline, "no run began"
        time.sleep(0.05)
    gap = Gap(here, there, chance)
    for number in range(rounds):
        allowed.write_text(str(steps * (number + 1) // rounds))  # it goes on while the bundle is made
        gap.round()
        if number % 2:
            gap.receipt()
    for process in running:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err[-3000:]
    gap.last()
    runs = sorted(p.name for p in (here.folder / "spool" / "runs").iterdir())
    assert {one["id"] for one in server.get("/runs", count=100)["data"]} == set(runs)
    points = _points(server, runs, steps)
    there.agent("verify", "--all")
    [status] = here.agent("status")
    left = int(here.python("-c", _PRUNE, here.folder / "spool"))
    assert left == 0, f"{left} runs are not pruned: {json.dumps(status)[:2000]}"
    there.agent("verify", "--all")
    bundles = sorted(p for p in here.carried.iterdir() if not p.name.startswith(".") and p.is_dir())
    here.agent("bundle", "show", "--verify", *bundles)  # whatever killed their makers, what has a name is whole
    return {"runs": len(runs), "points": points, **gap.seen}


def _points(server: RealServer, runs: list[str], steps: int) -> int:
    """Return how many points the server has, of the simulation's ranks exactly one for each step."""
    total = 0
    for run in runs:
        if server.get(f"/runs/{run}")["name"] != "heat":
            continue
        for rank in range(_RANKS):
            found = [step for step, _ in server.points(run, f"rank{rank}.heat")]
            assert found == list(range(steps)), f"rank {rank}: {len(found)} points, {len(set(found))} different, {steps} were recorded"
            total += len(found)
    assert total == _RANKS * steps
    return total


def enter(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the campaign in a network namespace of its own."""
    inside = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, __file__, *arguments]
    env = {**os.environ, _INSIDE: "1"}
    return subprocess.run(inside, env=env, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def main() -> int:
    """Do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--folder", metavar="DIR")
    chosen = parser.parse_args()
    if _INSIDE not in os.environ:
        done = enter(sys.argv[1:])
        print(done.stdout, end="")
        return done.returncode
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        figures = campaign(Path(folder), chosen.rounds, chosen.seed, chosen.steps)
    print(json.dumps(figures))
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
