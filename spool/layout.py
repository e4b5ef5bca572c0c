"""Names in a spool: every path is made and parsed back here (FORMAT.md section 2)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import atomic, ids
from .errors import InvalidSpool, NewerFormat, RunNotFound

FORMAT = (1, 0)
CARRIED = "carried.json"


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """One segment's file, as its name tells."""

    number: int
    path: str
    sealed: bool


@dataclass(frozen=True, slots=True)
class Spool:
    """A spool's folder and id. Make one with `open_spool`."""

    path: str
    id: str

    @property
    def runs(self) -> str:
        """The folder of all runs."""
        return os.path.join(self.path, "runs")

    @property
    def agent(self) -> str:
        """The agent's own folder."""
        return os.path.join(self.path, "agent")

    @property
    def pool(self) -> str:
        """The folder of all blobs."""
        return os.path.join(self.path, "blobs", "sha256")

    @property
    def quarantine(self) -> str:
        """Where damaged things go."""
        return os.path.join(self.path, "quarantine")

    def run(self, run_id: str) -> RunFolder:
        """Return a run's folder. Raises ValueError when the text is not an id."""
        ids.from_text(run_id)
        return RunFolder(os.path.join(self.runs, run_id), run_id)

    def run_ids(self) -> list[str]:
        """Return the ids of all runs, oldest first."""
        try:
            return sorted(name for name in os.listdir(self.runs) if ids.is_id(name))
        except FileNotFoundError:
            return []

    def pool_path(self, digest: str) -> str:
        """Return where the pool keeps a blob (64 hex digits)."""
        return os.path.join(self.pool, digest[:2], digest)

    def find_run(self, text: str) -> str:
        """Return the id of the run with this id, unique id prefix, or name.

        Raises RunNotFound when there is none or more than one; of several runs of one name, the message lists the ids.
        """
        if ids.is_id(text) and os.path.isdir(os.path.join(self.runs, text)):
            return text
        everything = self.run_ids()
        found = [r for r in everything if r.startswith(text)] if text else []
        if len(found) == 1:
            return found[0]
        named = [r for r in everything if self.run(r).info().get("name") == text]
        if len(named) == 1:
            return named[0]
        several = named or found
        if several:
            raise RunNotFound(f"{len(several)} runs match {text!r}: give one of the ids {', '.join(several[-5:])}")
        raise RunNotFound(f"no run {text!r} in the spool {self.path}: `agent ls` lists what is there")

    def find_own_run(self, text: str) -> str:
        """Return, as `find_run`, the id of a run that something is to be recorded into. Raises RunNotFound also for one that was carried
        here: it is another spool's.
        """
        run = self.find_run(text)
        if self.run(run).is_carried:
            raise RunNotFound(f"run {text!r} was carried here from another spool: nobody can act on it here, only where it was recorded")
        return run


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's folder."""

    path: str
    id: str

    @property
    def writers(self) -> str:
        """The folder of the run's writers."""
        return os.path.join(self.path, "w")

    @property
    def blobs(self) -> str:
        """The folder of the run's own links to its blobs."""
        return os.path.join(self.path, "blobs")

    @property
    def inbox(self) -> str:
        """The folder of lines from other languages."""
        return os.path.join(self.path, "inbox")

    @property
    def control(self) -> str:
        """Where requests to the script lie."""
        return os.path.join(self.path, "control")

    @property
    def is_carried(self) -> bool:
        """Whether the run was recorded in another spool and carried here (FORMAT.md section 13): nobody records into it here."""
        return os.path.lexists(os.path.join(self.path, CARRIED))

    def info(self) -> dict[str, Any]:
        """Return run.json; empty when it is missing or unreadable (it is a convenience: the records say it all)."""
        try:
            value = atomic.read_json(os.path.join(self.path, "run.json"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def writer_ids(self) -> list[str]:
        """Return the ids of the run's writers, oldest first."""
        return list_writers(self.writers)

    def writer(self, writer_id: str) -> str:
        """Return the folder of a writer."""
        return os.path.join(self.writers, writer_id)


def list_writers(folder: str) -> list[str]:
    """Return the writer ids in a `w` folder, oldest first."""
    try:
        return sorted(name for name in os.listdir(folder) if ids.is_id(name))
    except FileNotFoundError:
        return []


def segments(writer_folder: str) -> list[SegmentFile]:
    """Return a writer's segments in order. Where both forms of one number exist, the sealed one counts."""
    found: dict[int, SegmentFile] = {}
    try:
        names = os.listdir(writer_folder)
    except FileNotFoundError:
        return []
    for name in names:
        stem, _, suffix = name.partition(".")
        if suffix in {"open", "seg"} and stem.isdecimal() and stem.isascii() and 6 <= len(stem) <= 10:
            number = int(stem)
            if not 0 < number < 1 << 32 or stem != f"{number:06d}":
                continue
            if suffix == "seg" or number not in found:
                found[number] = SegmentFile(number, os.path.join(writer_folder, name), suffix == "seg")
    return [found[n] for n in sorted(found)]


def segment_path(writer_folder: str, number: int, suffix: str) -> str:
    """Return a segment's path; the suffix is `open`, `seg`, or `1.next`."""
    return os.path.join(writer_folder, f"{number:06d}.{suffix}")


def walk_files(folder: str) -> Iterator[str]:
    """Yield every regular file below a folder, sorted, without following links."""
    for base, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(base, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                yield path


def _check_owner(path: str) -> None:
    info = os.lstat(path)
    if stat.S_ISLNK(info.st_mode):
        if info.st_uid not in {0, os.geteuid()}:
            raise InvalidSpool(f"{path} is a link that uid {info.st_uid} made: choose another spool with SIMSPOOL_DIR or --spool")
        info = os.stat(path)
    if not stat.S_ISDIR(info.st_mode):
        raise InvalidSpool(f"{path} is not a folder: choose another spool with SIMSPOOL_DIR or --spool")
    if info.st_uid != os.geteuid():
        raise InvalidSpool(
            f"the spool {path} belongs to uid {info.st_uid}, you are uid {os.geteuid()}: choose your own with SIMSPOOL_DIR or --spool"
        )
    if info.st_mode & 0o002:
        raise InvalidSpool(f"anybody may write into the spool {path}: run `chmod o-w {path}` first")


def open_spool(path: str | os.PathLike[str], *, create: bool = False) -> Spool:
    """Return the spool in a folder.

    With `create`, it is made (mode 0700) where there is none. Raises InvalidSpool when the folder is not a spool, belongs to
    another user or may be written by anybody; NewerFormat for a newer major version; OSError when it cannot be made.
    """
    path = os.path.abspath(os.fspath(path))
    marker = os.path.join(path, "SPOOL")
    if create and not os.path.exists(marker):
        atomic.make_folder(path)
        _check_owner(path)
        others = [n for n in os.listdir(path) if not n.startswith("SPOOL")]
        if others and not os.path.exists(marker):  # looked for last: another process may be making it
            raise InvalidSpool(f"{path} has other files and is not a spool: choose an empty folder with SIMSPOOL_DIR or --spool")
        atomic.write_json(marker, {"format": list(FORMAT), "id": ids.to_text(ids.new_id())}, exclusive=True)
    try:
        _check_owner(path)
        value = atomic.read_json(marker)
        major, _minor = value["format"]
        spool_id = value["id"]
    except FileNotFoundError:
        raise InvalidSpool(f"no spool in {path}: a script makes it with Run.init, or set SIMSPOOL_DIR to where it is") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidSpool(f"{marker} is damaged ({error}): restore it from a copy, its content is one line of JSON") from None
    if not isinstance(major, int) or major > FORMAT[0]:
        raise NewerFormat(f"the spool {path} has format {major}, this simspool reads {FORMAT[0]}: upgrade simspool; nothing was changed")
    if not isinstance(spool_id, str) or not ids.is_id(spool_id):
        raise InvalidSpool(f"{marker} is damaged (its id is {spool_id!r}): restore it from a copy")
    return Spool(path, spool_id)
