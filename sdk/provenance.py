"""What the run ran on and from which code: read from files, within a few milliseconds, without network or child processes.

No environment variables and no command line are captured: they hold secrets. The ids of a scheduler's job are the exception.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from typing import Any

_BUDGET_NS = 50_000_000
_MOST_FILES = 50_000
_MOST_PACKAGES = 2_000


def system() -> dict[str, Any]:
    """Return the machine, the interpreter with its installed packages, and the git commit of the working folder."""
    uname = os.uname()
    found: dict[str, Any] = {
        "cwd": _cwd(),
        "hostname": uname.nodename,
        "pythonversion": sys.version.split()[0],
        "platform": {"system": uname.sysname, "release": uname.release, "version": uname.version},
        "cpu": {"arch": uname.machine, "processor": _processor()},
        "gpu": {"name": "", "driver": _gpu_driver()},
        "python": {"executable": sys.executable or "", "packages": packages()},
    }
    commit = git(found["cwd"])
    if commit:
        found["git"] = commit
    return found | scheduler()


def scheduler() -> dict[str, Any]:
    """Return {"slurm": {"job", "array"?, "restarts"?, "node"?}} inside a Slurm job, else nothing.

    `job` is its number, `array` "<array job>_<task>" of an element of an array, `restarts` how often it has been requeued, `node` where
    Slurm itself runs the process: not in a shell of `salloc` on a login node, which outlives its job.
    """
    value = os.environ.get
    job, array, task = value("SLURM_JOB_ID", ""), value("SLURM_ARRAY_JOB_ID", ""), value("SLURM_ARRAY_TASK_ID", "")
    if not _is_number(job):
        return {}
    found: dict[str, Any] = {"job": job}
    if _is_number(array) and _is_number(task):
        found["array"] = f"{array}_{task}"
    if _is_number(restarts := value("SLURM_RESTART_COUNT", "")):
        found["restarts"] = int(restarts)
    if node := value("SLURMD_NODENAME", ""):
        found["node"] = node[:255]
    return {"slurm": found}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


def _first_line(path: str, limit: int = 4096) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.readline(limit).strip()
    except OSError:
        return ""


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            for line in f:
                if line.startswith(("model name", "Model")):
                    return line.partition(":")[2].strip()
                if not line.strip():
                    break
    except OSError:
        pass
    return ""


def _gpu_driver() -> str:
    words = _first_line("/proc/driver/nvidia/version").split()
    return next((w for w in words if w[:1].isdigit() and "." in w), "")


def packages() -> dict[str, str]:
    """Return the installed distributions and their versions, as the names of their metadata folders tell."""
    found: dict[str, str] = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder) if folder.endswith("-packages") else []
        except OSError:
            continue
        for name in names:
            if name.endswith(".dist-info") and len(found) < _MOST_PACKAGES:
                project, _, version = name.removesuffix(".dist-info").rpartition("-")
                if project:
                    found.setdefault(project.replace("_", "-").lower(), version)
    return dict(sorted(found.items()))


def git(folder: str) -> dict[str, Any]:
    """Return {"ref", "commit", "dirty"} of the repository around a folder; empty where there is none.

    `dirty` compares sizes and times of the tracked files with git's index: True, False, or None when that was not possible in 50 ms.
    """
    root = folder
    while root and not os.path.exists(os.path.join(root, ".git")):
        parent = os.path.dirname(root)
        if parent == root:
            return {}
        root = parent
    if not root:
        return {}
    own = os.path.join(root, ".git")
    if os.path.isfile(own):  # a worktree or submodule
        own = os.path.normpath(os.path.join(root, _first_line(own).removeprefix("gitdir: ")))
    shared = os.path.normpath(os.path.join(own, _first_line(os.path.join(own, "commondir")) or "."))
    head = _first_line(os.path.join(own, "HEAD"))
    ref = head.removeprefix("ref: ") if head.startswith("ref: ") else ""
    commit = (_first_line(os.path.join(shared, ref)) or _packed(shared, ref)) if ref else head
    if not head:
        return {}
    return {"ref": ref.removeprefix("refs/heads/") or None, "commit": commit or None, "dirty": _is_dirty(root, os.path.join(own, "index"))}


def _packed(folder: str, ref: str) -> str:
    try:
        with open(os.path.join(folder, "packed-refs"), encoding="utf-8", errors="replace") as f:
            for line in f:
                if line.rstrip().endswith(" " + ref):
                    return line.split()[0]
    except OSError:
        pass
    return ""


def _is_dirty(root: str, index: str) -> bool | None:
    """Read git's index (versions 2 and 3) and stat each file. Staged but uncommitted changes are not seen."""
    deadline = time.monotonic_ns() + _BUDGET_NS
    try:
        with open(index, "rb") as f:
            data = f.read(32 << 20)
        magic, version, count = struct.unpack_from(">4sII", data)
        if magic != b"DIRC" or version not in {2, 3} or count > _MOST_FILES:
            return None
        at = 12
        for _ in range(count):
            fields = struct.unpack_from(">10I20sH", data, at)
            flags = fields[11]
            start = at + 62 + (2 if flags & 0x4000 else 0)
            end = data.index(b"\0", start)
            path = os.path.join(root, os.fsdecode(data[start:end]))
            at = at + ((end - at) // 8 + 1) * 8
            if fields[6] >> 12 != 0o10:
                continue  # a link or a submodule
            try:
                info = os.lstat(path)
            except OSError:
                return True
            if info.st_size & 0xFFFFFFFF != fields[9] or int(info.st_mtime) & 0xFFFFFFFF != fields[2]:
                return True
            if time.monotonic_ns() > deadline:
                return None
    except (OSError, struct.error, ValueError):
        return None
    return False
