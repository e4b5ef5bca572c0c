"""The machine: Python and what is installed, clocks, limits, and what its site does to processes that stay."""

from __future__ import annotations

import contextlib
import glob
import importlib.metadata
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

from simspool.spool.process import this_host

from .findings import Finding, Site

_NOT_BEFORE = 1_735_689_600  # s: 2025, before which no simspool was made
_FEW_FILES, _FEW_WATCHES, _FEW_INSTANCES = 1024, 8192, 16
_COMMAND = 5.0  # s
_SHORT = 600.0  # s of a job
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_KILLS = re.compile(r"\s*KillUserProcesses\s*=\s*(\S+)")


def python(site: Site) -> Iterator[Finding]:
    """Which Python, which simspool, and is everything there that the agent needs."""
    try:
        version = importlib.metadata.version("simspool")
        needed = importlib.metadata.requires("simspool") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("python", "fail", "simspool is not installed, only found", "python -m pip install simspool")
        return
    found, missing = {}, []
    for text in needed:
        if "extra ==" in text:
            continue
        match = _NAME.match(text)
        name = match[0] if match else text
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    own = ".".join(map(str, sys.version_info[:3]))
    facts = {"python": own, "simspool": version, "executable": sys.executable, "dependencies": found, "missing": missing}
    text = f"simspool {version} with Python {own}"
    if missing:
        instead = "python -m pip install simspool (recording alone needs none of them)"
        yield Finding("python", "fail", f"{text}; not installed: {', '.join(missing)}", instead, facts)
        return
    old = _too_old(needed, found)
    if old:
        yield Finding("python", "fail", f"{text}; too old: {', '.join(old)}", "python -m pip install --upgrade simspool", facts)
    else:
        yield Finding("python", "ok", f"{text}, all {len(found)} dependencies", "", facts)


def _too_old(needed: list[str], found: dict[str, str]) -> list[str]:
    """Return what is below a lower bound (`name>=1.2`): plain numbers, which all of ours are."""
    old = []
    for text in needed:
        bound = re.match(r"([A-Za-z0-9._-]+)[^;]*?>=\s*([0-9.]+)", text)
        if bound and bound[1] in found and _numbers(found[bound[1]]) < _numbers(bound[2]):
            old.append(f"{bound[1]} {found[bound[1]]} (needs {bound[2]})")
    return old


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:4])


def clock(site: Site) -> Iterator[Finding]:
    """Are there the clocks that records carry, does the kernel name this boot, is somebody keeping the time."""
    now, here = time.time(), this_host()
    if not hasattr(time, "CLOCK_BOOTTIME"):
        yield Finding("clock", "fail", "there is no boot clock (CLOCK_BOOTTIME)", "a Linux kernel of this century")
    elif now < _NOT_BEFORE:
        text = f"it says {time.strftime('%Y-%m-%d %H:%M', time.gmtime(now))} UTC, before simspool was made"
        yield Finding("clock", "fail", text, "set the clock, or have it synchronised (chrony, systemd-timesyncd)")
    else:
        yield Finding("clock", "ok", f"it says {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now))} UTC", "", {"wall": now})
    if not any(here.boot_id):
        text = "the kernel does not name this boot: processes from before a reboot cannot be told from others"
        yield Finding("boot id", "warn", text, "/proc/sys/kernel/random/boot_id must be readable")
    else:
        yield Finding("boot id", "ok", "the kernel names this boot", "", {"host": here.name, "machine_id": any(here.machine)})
    said = _asked(["timedatectl", "show", "-p", "NTPSynchronized", "-p", "NTP"])
    if said is None:
        yield Finding("time synchronised", "skipped", "there is no timedatectl that could tell")
    elif "NTPSynchronized=yes" in said:
        yield Finding("time synchronised", "ok", "yes")
    else:
        text = "systemd says no: times of several hosts may not fit"
        yield Finding("time synchronised", "warn", text, "timedatectl set-ntp true, or chrony")


def limits(site: Site) -> Iterator[Finding]:
    """How many files may be open, how much memory may be locked, how many folders may be watched."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = hard != resource.RLIM_INFINITY and hard < _FEW_FILES
    text = f"{_limit(soft)}, at most {_limit(hard)}"
    instead = "ulimit -Hn, in limits.conf: an agent holds about 3 files a live writer" if few else ""
    yield Finding("open files", "warn" if few else "ok", text, instead, {"soft": soft, "hard": hard})
    locked, most = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    yield Finding("locked memory", "ok", f"{_limit(locked, 1024)} kB (simspool locks none)", "", {"soft": locked, "hard": most})
    base = "/proc/sys/fs/inotify"
    try:
        with open(f"{base}/max_user_watches", encoding="ascii") as watches, open(f"{base}/max_user_instances", encoding="ascii") as several:
            most_watches, most_instances = int(watches.read()), int(several.read())
    except (OSError, ValueError):
        yield Finding("file notifications", "skipped", "the kernel does not tell its limits of inotify")
        return
    used = _instances()
    facts = {"watches": most_watches, "instances": most_instances, "instances_used": used}
    text = f"{most_watches:,} watches, {most_instances} instances a user ({used} in use)"
    if most_watches < _FEW_WATCHES or most_instances - used < _FEW_INSTANCES:
        text += ": where they run out, new files are found by looking, in seconds"
        instead = "sysctl fs.inotify.max_user_watches=65536 fs.inotify.max_user_instances=256"
        yield Finding("file notifications", "warn", text, instead, facts)
    else:
        yield Finding("file notifications", "ok", text, "", facts)


def _limit(value: int, unit: int = 1) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"{value // unit:,}"


def _instances() -> int:
    """Count this user's inotify instances, as far as they can be seen."""
    count = 0
    for link in glob.iglob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            count += os.readlink(link) == "anon_inode:inotify"
    return count


def policy(site: Site) -> Iterator[Finding]:
    """What this site does to processes that stay after a login or a job, and how long a job still has."""
    setting, source = kill_user_processes()
    if setting:
        text = f"{source} ends what a login leaves behind (KillUserProcesses=yes), agents that scripts started too"
        instead = "`agent service install --user` and `loginctl enable-linger`, or `agent sync` at the end of a script"
        yield Finding("logins", "warn", text, instead)
    else:
        yield Finding("logins", "ok", "nothing says that processes end with the login")
    has_slurm, job = shutil.which("sbatch") is not None, os.environ.get("SLURM_JOB_ID")
    if not job:
        text = "Slurm is here: docs/site.md has recipes for jobs" if has_slurm else "no Slurm here"
        yield Finding("batch system", "ok", text, "", {"slurm": has_slurm})
        return
    left = _left(job)
    facts = {"slurm": True, "job": job, "left": None if left is None else round(left)}
    if left is None:
        yield Finding("batch system", "ok", f"in Slurm job {job}, without a known end", "", facts)
    else:
        text = f"in Slurm job {job}, which has {left / 60:.0f} min left"
        short = left < _SHORT
        instead = "what is recorded waits in the spool: sync after the job (docs/site.md)" if short else ""
        yield Finding("batch system", "warn" if short else "ok", text, instead, facts)


def _left(job: str) -> float | None:
    from simspool.agent.sampling.walltime import ask_squeue

    end = os.environ.get("SLURM_JOB_END_TIME", "")
    at = float(end) if end.isdigit() else ask_squeue(job)
    return None if at is None else max(at - time.time(), 0.0)


def kill_user_processes(root: str = "/") -> tuple[bool, str]:
    """Return whether logind is told to, and by which file; the last file that says so counts, as for systemd."""
    bases = [os.path.join(root, base) for base in ("usr/lib/systemd", "run/systemd", "etc/systemd")]
    files = [os.path.join(base, "logind.conf") for base in bases]
    drop_ins = {}
    for base in bases:  # of two files of one name, the later folder's counts
        drop_ins.update({os.path.basename(p): p for p in glob.glob(f"{base}/logind.conf.d/*.conf")})
    kills, source = False, ""
    for path in [*files, *(drop_ins[name] for name in sorted(drop_ins))]:
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                found = _KILLS.match(line)
                if found:
                    kills, source = found[1].lower() in {"yes", "true", "1", "on"}, path
    return kills, source


def _asked(command: list[str]) -> str | None:
    """Return what a command prints; None where it is not there, fails, or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND, stdin=subprocess.DEVNULL, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
