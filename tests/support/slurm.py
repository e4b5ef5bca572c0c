"""A real Slurm of one node, or of several as daemons of this machine, on ports of its own. Needs root and Debian's packages."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
_NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo", "scancel")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

_CONF = """
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_min_interval=1000
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
KillWait=2
SlurmdParameters=config_overrides
OverTimeLimit=0
ReturnToService=2
SwitchType=switch/none
MpiDefault=none
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def install() -> None:
    """Install what is missing, or skip loudly."""
    if os.geteuid() != 0:
        pytest.skip("SKIPPED: a real Slurm needs root")
    if all(shutil.which(name, path=_PATH) for name in _NEEDED):
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-q"], ["apt-get", "install", "-q", "-y", "--no-install-recommends", *PACKAGES]):
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"SKIPPED: Slurm cannot be installed: {error}")
        if done.returncode != 0:
            pytest.skip(f"SKIPPED: Slurm cannot be installed: {(done.stderr or done.stdout)[-300:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Slurm:
    """A running Slurm. `environment` leads its commands to it."""

    def __init__(self, folder: Path, nodes: int = 1) -> None:
        self.folder = folder
        self.host = socket.gethostname().split(".")[0]
        self.nodes = [self.host] if nodes == 1 else [f"n{n}" for n in range(1, nodes + 1)]
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _PATH}

    def start(self) -> None:
        """Start all three daemons and wait until the node is idle."""
        for name in ("munge", "state", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir(mode=0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        (self.folder / "slurm.conf").write_text(
            _CONF.format(host=self.host, folder=self.folder, controller=_free_port(), nodes="\n".join(map(self._node, self.nodes)))
        )
        own = self.folder / "munge"
        command = [
            "munged", "--force", f"--key-file={key}", f"--socket={own}/socket", f"--pid-file={self.folder}/munged.pid",
            f"--log-file={own}/log", f"--seed-file={own}/seed",
        ]  # fmt: skip
        self._start(command)
        self._start(["slurmctld", "-i"])
        for node in self.nodes:
            self._start(["slurmd", "-N", node])
        self.until_idle()

    def _node(self, name: str) -> str:
        cpus = 16 if len(self.nodes) == 1 else 2
        return f"NodeName={name} NodeHostname={self.host} NodeAddr=127.0.0.1 Port={_free_port()} CPUs={cpus} RealMemory=512 State=UNKNOWN"

    def _start(self, command: list[str]) -> None:
        program = shutil.which(command[0], path=_PATH) or command[0]
        done = subprocess.run(
            [program, *command[1:]], env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        if done.returncode != 0:
            self.stop()
            pytest.skip(f"SKIPPED: {command[0]} does not start here: {(done.stderr or done.stdout)[-300:]}")

    def until_idle(self) -> None:
        """Wait until every node takes jobs."""
        deadline = time.monotonic() + 60
        while self.run("sinfo", "-h", "-N", "-o", "%T", "-p", "debug", check=False).split().count("idle") < len(self.nodes):
            assert time.monotonic() < deadline, self.run("sinfo", check=False)
            time.sleep(0.2)

    def run(self, *command: str, check: bool = True, environment: Mapping[str, str] | None = None) -> str:
        """Run one of its commands; returns its output."""
        env = {**(environment or os.environ), **self.environment}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def stop(self) -> None:
        """End everything."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self.run("scancel", "-u", "root", check=False)
            deadline = time.monotonic() + 15
            while self.run("squeue", "-h", check=False) and time.monotonic() < deadline:
                time.sleep(0.2)
        for name in (*(f"slurmd-{node}" for node in self.nodes), "slurmctld", "munged"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((self.folder / f"{name}.pid").read_text()), signal.SIGTERM)


@contextlib.contextmanager
def real_slurm(folder: Path, nodes: int = 1) -> Iterator[Slurm]:
    """Give a Slurm that takes jobs."""
    install()
    slurm = Slurm(folder, nodes)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
