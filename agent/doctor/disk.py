"""The spool: is it ours, is there room, how are segments written, does its disk do what the format counts on, what does durability cost."""

from __future__ import annotations

import contextlib
import os
import stat
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

from simspool.agent.catalog.store import state_folder
from simspool.agent.config import AgentConfig
from simspool.spool import atomic
from simspool.spool.filesystem import MAPPABLE, is_mappable, is_network, type_of
from simspool.spool.stream import sync_segment

from .findings import Finding, Site, Verdict, nearest_folder, shown_size
from .scratch import Scratch

_FEW_INODES = 10_000
_SKEW = 2.0  # s
_SYNCS = 50
_RECORD = b"\0" * 100  # about what a call of a few metrics takes
_APPENDED, _BLOCK, _LONGEST = 64 << 20, 1 << 20, 15.0
_SLOW = 0.1  # s a sync: `each` is no choice any more
_LATE = 1.0  # s a sync: `interval` promises at most about a second
_RENAMES = 20
_AGAIN = "`agent doctor` again after the first run"
_LOCKS = {  # by mount option: what flock() means on network file systems that tell
    "nfs": {"nolock": "local", "local_lock=all": "local", "local_lock=flock": "local"},
    "nfs4": {"local_lock=all": "local", "local_lock=flock": "local"},
    "lustre": {"flock": "across hosts", "localflock": "local", "noflock": "refused"},
    "cifs": {"nobrl": "local"},
    "smb3": {"nobrl": "local"},
}
_ACROSS = frozenset({"nfs", "nfs4"})  # without such an option


def reached(site: Site) -> Iterator[Finding]:
    """Does the spool's disk answer at all: asked first, so that what hangs on it hangs once."""
    path = nearest_folder(site.config.spool_dir)
    began = time.perf_counter()
    names = os.listdir(path)
    seconds = time.perf_counter() - began
    facts = {"seconds": round(seconds, 6), "names": len(names)}
    yield Finding("disk", "ok", f"the spool's disk answers in {_milliseconds(seconds)}", "", facts)


def spool(site: Site) -> Iterator[Finding]:
    """Is there a spool, whose is it, who else may read it, how full is its disk, and how are segments written there."""
    path, source = site.config.spool_dir, site.config.sources.get("spool", "")
    where = f"{path} ({source})" if source else path
    if not site.is_there():
        parent = nearest_folder(path)
        if os.access(parent, os.W_OK | os.X_OK):
            yield Finding("spool", "ok", f"there is none yet in {where}: the first run makes it", "", {"path": path, "there": False})
        else:
            instead = "choose another place: SIMSPOOL_DIR, --spool, or [spool] dir in simspool.toml"
            yield Finding("spool", "fail", f"there is none yet in {where}, and you may not write in {parent}", instead)
            return
    else:
        found = site.spool()
        mode = stat.S_IMODE(os.stat(found.path).st_mode)
        facts = {"path": path, "there": True, "id": found.id, "mode": f"{mode:04o}"}
        if not os.access(found.path, os.W_OK | os.X_OK):
            yield Finding("spool", "fail", f"{where} cannot be written: is its disk read-only?", "`mount`, or another spool", facts)
        elif mode & 0o070 or mode & 0o007:
            yield Finding("spool", "warn", f"{where} is yours, others may look in (mode {mode:04o})", f"chmod 700 {path}", facts)
        else:
            yield Finding("spool", "ok", f"{where} is yours, mode {mode:04o}, format as expected", "", facts)
    yield from _room(site, nearest_folder(path))
    yield _segments(site, nearest_folder(path))


def _room(site: Site, folder: str) -> Iterator[Finding]:
    disk = os.statvfs(folder)
    free, all_of_it = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    floor = AgentConfig.disk_floor
    verdict: Verdict = "ok" if free > 2 * floor else "warn" if free > floor else "fail"
    instead = "" if verdict == "ok" else "free some, or move the spool to another disk (docs/budgets.md says what is refused when)"
    yield Finding("space", verdict, f"{shown_size(free)} of {shown_size(all_of_it)} free", instead, {"free": free, "size": all_of_it})
    if disk.f_files:  # some file systems have no limit of files
        few = disk.f_favail < _FEW_INODES
        text = f"{disk.f_favail:,} more files and folders"
        yield Finding("inodes", "warn" if few else "ok", text, "remove some files on this disk" if few else "", {"free": disk.f_favail})
    budget = site.config.budget
    if not budget.is_limited:
        yield Finding("budget", "ok", "no limit is set: the spool may fill its disk down to the floor")
    elif not site.is_there():
        yield Finding("budget", "ok", "a limit is set, nothing is there yet")
    else:
        from simspool.agent.budget.guard import look_once

        found = look_once(site.spool(), budget)
        parts = [_of(found, "bytes", shown_size), _of(found, "inodes", "{:,} files".format)]
        level = bool(found["level"])
        text = ", ".join(p for p in parts if p) + (f"; {found['refused']}: {found['why']}" if level else "")
        yield Finding("budget", "warn" if level else "ok", text, "`agent sync`, or a larger [budget]" if level else "", dict(found))


def _of(found: dict[str, Any], what: str, show: Any) -> str:
    limit, there = found[f"{what}_limit"], found[what]
    return f"{show(there or 0)} of {show(limit)}" if limit else ""


def _segments(site: Site, folder: str) -> Finding:
    kind, wanted = type_of(folder), site.config.segments
    fits = is_mappable(folder)
    how = wanted or ("mapped" if fits else "file")
    words = {"mapped": "mapped into memory", "file": "written by system calls"}[how]
    facts = {"writer": how, "file_system": kind, "forced": wanted is not None}
    if wanted == "mapped" and not fits:
        text = f"{words}, as SIMSPOOL_SEGMENTS says, on {kind}: a full disk may end a script by SIGBUS there"
        return Finding("segments", "warn", text, "unset SIMSPOOL_SEGMENTS ([spool] segments)", facts)
    why = f"{kind} is {'' if fits else 'none of '}{'a local file system' if fits else ', '.join(sorted(MAPPABLE))}"
    if wanted:
        why = "as SIMSPOOL_SEGMENTS says"
    return Finding("segments", "ok", f"{words}: {why}", "", facts)


# ---------------------------------------------------------------------- what the file system does


def file_system(site: Site) -> Iterator[Finding]:
    """Does the spool's file system do what the format counts on: links, renames, exclusive files, fsync, locks, times, letter case."""
    path = nearest_folder(site.config.spool_dir)
    kind, network = type_of(path), is_network(path)
    text = f"{kind}, {'a network file system' if network else 'on this machine'}"
    facts = {"type": kind, "network": network}
    if kind in {"tmpfs", "ramfs"}:
        yield Finding("file system", "warn", f"{kind}: what is recorded is gone after a reboot", "a spool on a disk: SIMSPOOL_DIR", facts)
    else:
        yield Finding("file system", "ok", text, "", facts)
    yield _locks(path, kind, network)
    if not site.is_there():
        yield Finding("operations", "skipped", "there is no spool yet in which they could be tried", _AGAIN)
        return
    with Scratch(site.spool()) as scratch:
        for look in (_links, _renames, _exclusive, _fsync, _times, _letter_case):
            try:
                yield look(scratch)
            except OSError as error:
                name = look.__name__.strip("_").replace("_", " ")
                yield Finding(name, "fail", f"{error.strerror or error}", "a spool on another file system: SIMSPOOL_DIR")


def _put(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _get(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def _links(scratch: Scratch) -> Finding:
    one, two = scratch.path("link-1"), scratch.path("link-2")
    _put(one, b"x")
    try:
        atomic.link(one, two)
    except OSError as error:
        text = f"hard links do not work ({error.strerror}): each run keeps its own copy of a file, which takes more room"
        return Finding("links", "warn", text)
    same = os.stat(one).st_ino == os.stat(two).st_ino
    if not same or atomic.link(one, two):
        return Finding("links", "warn", "hard links are not what they seem: each run's files are copies")
    return Finding("links", "ok", "hard links work")


def _renames(scratch: Scratch) -> Finding:
    target, gone, over = scratch.path("renamed"), [0], threading.Event()
    _put(target, b"0")

    def watch() -> None:
        while not over.is_set():
            try:
                if not _get(target):
                    gone[0] += 1
            except OSError:
                gone[0] += 1
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        for n in range(_RENAMES):
            source = scratch.path(f"rename-{n}")
            _put(source, b"%d" % n)
            atomic.rename(source, target)
            if os.path.exists(source) or _get(target) != b"%d" % n:
                return Finding("renames", "fail", "a rename does not replace the file", "a spool on another file system: SIMSPOOL_DIR")
    finally:
        over.set()
        watcher.join(10)
    if gone[0]:  # with a cache between, as in sshfs, it may be so for a moment; readers of a spool look again
        text = f"a reader may find a file missing or empty for a moment while it is replaced (seen {gone[0]} times)"
        verdict: Verdict = "warn" if is_network(target) else "fail"
        return Finding("renames", verdict, text, "a spool on another file system: SIMSPOOL_DIR", {"missing": gone[0]})
    return Finding("renames", "ok", "a rename replaces a file in one step")


def _exclusive(scratch: Scratch) -> Finding:
    path = scratch.path("exclusive")
    _put(path, b"first")
    try:
        _put(path, b"second")
    except FileExistsError:
        return Finding("exclusive", "ok", "a file is made once only (O_EXCL)")
    return Finding("exclusive", "fail", "O_EXCL does not keep a second file out", "a spool on another file system: SIMSPOOL_DIR")


def _fsync(scratch: Scratch) -> Finding:
    path = scratch.path("synced")
    _put(path, b"x")
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        sync_segment(fd, os.path.dirname(path), named=False)
    finally:
        os.close(fd)
    return Finding("fsync", "ok", "fsync works, of files and of the folder")


def _times(scratch: Scratch) -> Finding:
    """Compare the time that the disk gives a new file, which on a network is its server's, with our clock."""
    path = scratch.path("time")
    before = time.time()
    _put(path, b"x")
    after = time.time()
    given = os.stat(path).st_mtime
    skew = given - after if given > after else given - before if given < before else 0.0
    text = f"files get times {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's clock"
    facts = {"skew": round(skew, 3)}
    if abs(skew) > _SKEW:
        return Finding("file times", "warn", text, "have both clocks synchronised (chrony, systemd-timesyncd)", facts)
    return Finding("file times", "ok", "files get this machine's time" if abs(skew) < 0.1 else text, "", facts)


def _letter_case(scratch: Scratch) -> Finding:
    path = scratch.path("case-a")
    _put(path, b"x")
    if os.path.exists(path[:-1] + "A"):
        return Finding("letter case", "warn", "names that differ only in case are one file here: inboxes and names of files may clash")
    return Finding("letter case", "ok", "names are told apart by case")


def _locks(path: str, kind: str, network: bool) -> Finding:
    """Say whether flock() holds across hosts, as far as the mount's options tell."""
    if not network:
        return Finding("locks", "ok", "this machine's own: one agent serves the spool", "", {"flock": "local disk"})
    options = _mount_options(path)
    otherwise = "across hosts" if kind in _ACROSS else "unknown"
    known = next((said for option, said in _LOCKS.get(kind, {}).items() if option in options), otherwise)
    facts = {"flock": known}
    if known == "across hosts":
        return Finding("locks", "ok", "flock holds across hosts", "", facts)
    if known == "refused":
        text = f"flock is refused on this {kind}: no agent can serve the spool"
        return Finding("locks", "fail", text, "mount it with the option flock", facts)
    text = "flock holds on each host alone" if known == "local" else f"nobody can tell whether flock holds across hosts on {kind}"
    return Finding("locks", "ok", f"{text}: agents of several hosts go by the spool's lease", "", facts)


def _mount_options(path: str) -> set[str]:
    real, best, found = os.path.realpath(path), "", set[str]()
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            mount = left.split()[4].replace("\\040", " ")
            if len(mount) >= len(best) and (mount == "/" or real == mount or real.startswith(mount + "/")):
                best, found = mount, {*left.split()[5].split(","), *right.split()[-1].split(",")}
    return found


# ---------------------------------------------------------------------- what it costs


def durability(site: Site) -> Iterator[Finding]:
    """Measure what a sync of a few records takes, and how fast the disk takes many; say what that means for each durability."""
    if not site.is_there():
        yield Finding("durability", "skipped", "there is no spool yet to measure in", _AGAIN)
        return
    with Scratch(site.spool()) as scratch:
        fd = scratch.open_nameless()
        try:
            yield _syncs(fd, site.config.durability.name.lower())
            if not site.quick:
                yield _rate(fd)
        finally:
            os.close(fd)


def _syncs(fd: int, chosen: str) -> Finding:
    os.posix_fallocate(fd, 0, 65536)  # as a segment's are: the size does not change with each record
    sync_segment(fd, "", named=True)
    taken = []
    for n in range(_SYNCS):
        began = time.perf_counter()
        os.pwrite(fd, _RECORD, n * len(_RECORD))
        sync_segment(fd, "", named=True)
        taken.append(time.perf_counter() - began)
        if sum(taken) > _LONGEST:
            break
    ranked = sorted(taken)
    half, worst = statistics.median(taken), ranked[min(len(ranked) - 1, int(len(ranked) * 0.99))]
    facts = {"chosen": chosen, "syncs": len(taken), "p50": round(half, 6), "p99": round(worst, 6)}
    text = (
        f"a sync takes {_milliseconds(half)} (p50), {_milliseconds(worst)} (p99 of {len(taken)}): `interval` costs one a second, "
        f"beside the script; `each` costs one a call; chosen is `{chosen}`"
    )
    if chosen == "each" and half > _SLOW:
        return Finding("durability", "warn", text, "durability `interval`, or a spool on a faster disk", facts)
    if chosen != "lazy" and worst > _LATE:
        instead = "a power cut may cost more than a second of records: a spool on a faster disk"
        return Finding("durability", "warn", text, instead, facts)
    return Finding("durability", "ok", text, "", facts)


def _rate(fd: int) -> Finding:
    disk = os.fstatvfs(fd)
    if disk.f_bavail * disk.f_frsize < 2 * AgentConfig.disk_floor:
        return Finding("throughput", "skipped", "not measured: too little room")
    block, done, began = os.urandom(_BLOCK), 0, time.perf_counter()
    while done < _APPENDED and time.perf_counter() - began < _LONGEST:
        done += os.pwrite(fd, block, done)
        if done % (8 * _BLOCK) == 0:  # a deadline means little while all of it is only in memory
            sync_segment(fd, "", named=True)
    sync_segment(fd, "", named=True)
    seconds = time.perf_counter() - began
    rate = done / seconds
    facts = {"bytes_per_second": round(rate), "bytes": done}
    return Finding("throughput", "ok", f"{shown_size(rate)}/s appended and synced ({shown_size(done)})", "", facts)


def state(site: Site) -> Iterator[Finding]:
    """Does the agent's index lie on a local disk, and is there room."""
    folder = state_folder()
    there = nearest_folder(folder)
    kind, disk = type_of(there), os.statvfs(there)
    free = disk.f_bavail * disk.f_frsize
    facts = {"path": folder, "type": kind, "free": free}
    if is_network(there):
        text = f"the agent's index lies in {folder}, on {kind}: SQLite is slow there, and not safe from several hosts"
        yield Finding("index", "warn", text, "SIMSPOOL_STATE=/var/tmp/... or another local disk, for scripts and agent", facts)
    elif not os.access(there, os.W_OK | os.X_OK):
        text = f"the agent's index would lie in {folder}, where you may not write"
        yield Finding("index", "fail", text, "SIMSPOOL_STATE: a folder of yours", facts)
    elif free < AgentConfig.disk_floor // 4:
        text = f"the agent's index lies in {folder}, with {shown_size(free)} left"
        yield Finding("index", "warn", text, "SIMSPOOL_STATE: another local disk", facts)
    else:
        yield Finding("index", "ok", f"the agent's index lies in {folder}, on {kind}", "", facts)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"
