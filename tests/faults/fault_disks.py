"""F8, F9: disks that are full, read-only, or answer EIO, under scripts and agents."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from checker import check_drained, check_scripts, check_server, check_spool
from trials import Context, NotHere, Part, Stage, part, until

_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2  # ext4's ioctl: from here on every call of this file system is answered EIO


@contextmanager
def tmpfs(at: Path, size: str, more: str = "") -> Iterator[Path]:
    """A small disk in memory. Raises NotHere without root."""
    at.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700{more}", "tmpfs", str(at)], check=False, capture_output=True)
    if made.returncode:
        raise NotHere(f"small disks need root: {made.stderr.decode(errors='replace').strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def fill(at: Path) -> Path:
    """Leave no byte free."""
    filler = at / "filler"
    with filler.open("wb", buffering=0) as f:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while f.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return filler


@part("F8", "full disks: the spool's, the agent's state, both, no inodes")
def full_disks(c: Context, out: Part) -> None:
    """The disk fills while a script records and an agent drains; space returns; everything that returned True arrives."""
    for number in range(c.pick(2, 8, 48)):
        which = ("spool", "state", "both", "inodes")[number % 4]
        _full(c, out, which)


def _full(c: Context, out: Part, which: str) -> None:
    choice, room = c.random(f"full {out.n}"), c.room()
    inodes = ",nr_inodes=32" if which == "inodes" else ""
    with tmpfs(room / "a", "6m", inodes) as spool_disk, tmpfs(room / "b", "16m") as state_disk, \
            Stage(room, c.server, spool=spool_disk / "spool", state=state_disk / "state") as stage:  # fmt: skip
        agent = stage.agent()
        until(lambda: any((stage.spool / "agent" / "hosts").glob("*.json")))  # an agent does not start on a disk that is full already
        scripts = [stage.script(calls=4000, rate=2000, pad=choice.choice([10, 2000]), files=choice.choice([0, 1]), linger=1.0)]
        scripts[0].wait_for(choice.randrange(10, 1500))
        fillers = [fill(disk) for disk, name in ((spool_disk, "spool"), (state_disk, "state")) if which in {name, "both"}]
        if which == "inodes":
            fillers += _use_inodes(spool_disk)
        scripts.append(stage.script(calls=500, rate=1000))  # one that finds the disk full when it begins
        time.sleep(choice.uniform(0.5, 2.0))
        for filler in fillers:
            filler.unlink()
        for script in scripts:
            script.wait()
        wrong = [f"I6: the agent ended with {agent.poll()}"] if agent.poll() is not None else []
        stage.settle()
        out.add(calls=sum(sum(s.said.tried.values()) for s in scripts), dropped=sum(sum(s.said.no.values()) for s in scripts))
        out.tried([*wrong, *check_drained(stage)], which)


def _use_inodes(disk: Path) -> list[Path]:
    made: list[Path] = []
    while True:
        path = disk / f"inode-{len(made)}"
        try:
            path.touch()
        except OSError:
            return made
        made.append(path)


@part("F8", "a disk that is read-only for a while")
def read_only(c: Context, out: Part) -> None:
    """Nobody has a file open for writing when it changes: a disk with writers cannot be remounted (F9 has one that breaks under them)."""
    for _ in range(c.pick(1, 3, 16)):
        choice, room = c.random(f"read-only {out.n}"), c.room()
        with tmpfs(room / "a", "16m") as disk:
            stage = Stage(room, c.server, spool=disk / "spool")
            stage.record(calls=200, files=1)
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            script = stage.script(calls=choice.choice([50, 600]), rate=400).wait_for(30)
            stuck = stage.sync(options=("--timeout", "1"))
            wrong = [f"I8: a sync of a read-only spool: {stuck.errors[-300:]}"] if "Traceback" in stuck.errors else []
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            script.wait()
            out.add(dropped=sum(script.said.no.values()))
            out.tried([*wrong, *check_drained(stage)])


@part("F9", "an ext4 disk that answers EIO, or that its kernel makes read-only, for good; then it is mounted again")
def eio(c: Context, out: Part) -> None:
    """The ext4 shutdown ioctl, without its log: what was not fsynced is gone. The server must not have more than the disk."""
    import powercut_campaign

    reason = powercut_campaign.usable()
    if reason:
        raise NotHere(reason)
    for _ in range(c.pick(1, 4, 32)):
        choice, room = c.random(f"eio {out.n}"), c.room()
        level = choice.choice(["lazy", "interval", "each"])
        with powercut_campaign.Disk(room, 64) as disk:
            stage = Stage(room, c.server, spool=disk.mount / "spool", env={"SIMSPOOL_DURABILITY": level})
            agent = stage.agent()
            segments = choice.choice(["mapped", "file"])
            script = stage.script(calls=3000, rate=1500, env={"SIMSPOOL_SEGMENTS": segments}).wait_for(choice.randrange(50, 2000))
            promised = script.said
            how = choice.choice(["EIO", "read-only"])
            if how == "EIO":
                shut_down(disk.mount)
            else:
                subprocess.run(["mount", "-o", "remount,abort", str(disk.mount)], check=False, capture_output=True)
            script.wait()
            promised.tried = script.said.tried  # calls went on until the disk was gone
            time.sleep(0.5)
            stage.settle(agent)
            wrong = [text for text in check_scripts(stage.scripts) if not _is_bus_error(text)]
            out.add(killed_by_sigbus=int(script.process.returncode == -7), calls=len(script.said.yes["metrics"]))
            subprocess.run(["umount", str(disk.mount)], check=False, capture_output=True)
            subprocess.run(["mount", "-o", "loop", str(disk.image), str(disk.mount)], check=True, capture_output=True)
            if (stage.spool / "SPOOL").exists():
                wrong += check_server(c.server, stage.spool, [promised], whole=False)
                if level == "each" and (stage.spool / "runs").exists():
                    wrong += [text for text in check_spool(stage.spool, [promised], damaged=True) if text.startswith("I1")]
                done = stage.sync()
                if done.code != 0:
                    wrong.append(f"I8: the sync after the mount ended with {done.code}: {done.output[-300:]}{done.errors[-300:]}")
                wrong += check_server(c.server, stage.spool, [promised], whole=False)
            out.tried(wrong, f"{how}, {level}, {segments}")
            stage.settle()
        shutil.rmtree(room, ignore_errors=True)


def _is_bus_error(text: str) -> bool:
    """A page of a mapped file that must be read again from a disk that is dead kills its process: nothing can be done about it here."""
    return "ended with -7" in text


def shut_down(mount: Path) -> None:
    """Have an ext4 file system answer EIO from now on."""
    fd = os.open(mount, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
    finally:
        os.close(fd)
