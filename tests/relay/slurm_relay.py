"""A Slurm array on four nodes, one spool that they share, a login node behind SSH, and a server that only the login node reaches.

    python tests/relay/slurm_relay.py [--elements 8] [--points 2000]

Ends with 0 when every point is on the server once, the shared spool could be pruned, `agent verify` finds nothing wrong on the login node,
and no file of the shared spool or the place has the token. Needs root, Debian's Slurm packages and openssh-server.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

import slurm  # noqa: E402
from hop import Process, until  # noqa: E402
from real_server import RealServer, agent  # noqa: E402
from sides import Side  # noqa: E402
from ssh_server import SshServer  # noqa: E402

RECIPES = HERE.parents[1] / "examples" / "slurm"
SCRIPT = """
import os, sys, time
from simspool.sdk import Run
points, out = int(sys.argv[1]), sys.argv[2]
run = Run(mode="online")
run.init("element " + sys.argv[3], metadata={"node": os.environ["SLURMD_NODENAME"]})
for step in range(points):
    assert run.log_metrics({"x": float(step)}, step=step)
    if step == points // 2:
        time.sleep(2)
with open(f"{out}/{run.id}.run", "w") as file:
    file.write(os.environ["SLURMD_NODENAME"])
run.close()
"""


def play(folder: Path, elements: int, points: int) -> dict[str, Any]:
    """Do it; returns figures. Raises AssertionError where a promise does not hold."""
    began = time.monotonic()
    (cluster_folder := folder / "slurm").mkdir()
    login, place = folder / "login", folder / "login" / "place"
    place.mkdir(parents=True, mode=0o700)
    (login / "simspool.toml").write_text(f'[relay]\nreceive = ["{place}"]\nevery = 1\n')
    for name in ("runs", "rt", "tmp", "home"):
        (folder / name).mkdir(mode=0o700)
    with slurm.real_slurm(cluster_folder, 4) as cluster, RealServer(folder / "server") as server, SshServer(folder / "ssh") as sshd:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SIMSPOOL_", "SIMVUE_", "SLURM_", "SSH_"))}
        path = f"{sysconfig.get_path('scripts')}:{cluster.environment['PATH']}"
        base = {**kept, "SLURM_CONF": cluster.environment["SLURM_CONF"], "PATH": path}
        compute = {
            **base, "SIMSPOOL_DIR": str(folder / "spool"), "HOME": str(folder / "home"), "XDG_RUNTIME_DIR": str(folder / "rt"),
            "TMPDIR": str(folder / "tmp"), "SIMSPOOL_AGENT": "off",
        }  # fmt: skip
        there = {**base, **server.environment, "HOME": str(login), "XDG_RUNTIME_DIR": str(login), "SIMSPOOL_STATE": str(login / "state")}
        script = folder / "record.py"
        script.write_text(SCRIPT)

        def submit(recipe: str, *words: str, options: tuple[str, ...] = ()) -> str:
            command = ["sbatch", "--parsable", "--output", str(folder / "%A_%a-%j.out"), *options, str(RECIPES / recipe), *words]
            done = subprocess.run(command, env=compute, cwd=folder, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        with Process(folder / "login.log", "run", "--spool", login / "spool", env=there, cwd=login, alone=True):
            record = [sys.executable, str(script), str(points), str(folder / "runs")]
            array = submit("array.sbatch", *record, options=(f"--array=0-{elements - 1}", "--ntasks=1"))
            to = [sshd.url(place), *sshd.options, "--every", "1"]
            until(lambda: list((folder / "runs").iterdir()), "the first element has ended", 120)
            early = submit("relay.sbatch", *to)  # while others still record
            late = submit("relay.sbatch", *to, options=(f"--dependency=afterany:{array}",))

            def ended(job: str) -> str | None:
                said = cluster.run("scontrol", "show", "job", job, check=False)
                words = dict(w.partition("=")[::2] for w in said.split())
                state = words.get("JobState", "")
                return None if state in {"", "PENDING", "RUNNING", "COMPLETING", "CONFIGURING"} else f"{state} {words['ExitCode']}"

            try:
                states = [until(lambda: ended(job), f"job {job} ends", 240) for job in (early, late)]  # noqa: B023
            finally:
                outputs = {p.name: p.read_text()[-1500:] for p in folder.glob("*.out")}
            assert states == ["COMPLETED 0:0"] * 2, (states, outputs)
            runs = {p.stem: p.read_text() for p in (folder / "runs").iterdir()}
            assert len(runs) == elements
            wrong = {run: len(server.points(run, "x")) for run in runs if server.points(run, "x") != [(n, float(n)) for n in range(points)]}
            assert wrong == {}
            token = server.data / "token"
            verify = agent("verify", "--all", "--spool", str(login / "spool"), "--url", server.url, "--token-file", str(token), env=there)
            assert verify.returncode == 0, verify.stdout + verify.stderr
        secret = server.token.encode()
        for file in (p for part in (folder / "spool", place, folder / "home") for p in part.rglob("*") if p.is_file()):
            assert secret not in file.read_bytes(), file
        with Side(folder / "spool") as side:
            side.take_in()
            pruned = side.prune("bundle:bundle")
            left = side.spool.run_ids()
        assert set(runs) <= set(pruned), "something is not delivered"
        assert left == [], left
        assert os.listdir(place / "refused") == []
    return {
        "elements": elements, "nodes": len(set(runs.values())), "points": elements * points, "wrong": 0, "pruned": len(pruned),
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def main() -> int:
    """Run it from the command line; the last line is the figures, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=8)
    parser.add_argument("--points", type=int, default=2000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="relay-", ignore_cleanup_errors=True) as folder:
        os.environ["SIMSPOOL_STATE"] = f"{folder}/state"
        print(json.dumps(play(Path(folder), given.elements, given.points)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
