"""One run in a directory target: its files, and the commit that says how much of them counts.

Records are appended and fsynced; then one small file, the commit, is replaced: each writer's last sequence and chain, and the lengths of
the run's files. What lies behind those lengths is torn and cut off by the next append. So a record is in the files exactly once, whoever
is killed when. It holds for agents that see each other's locks (flock), and where an fsync keeps its promise.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simspool.agent.chains import NONE, chain_over
from simspool.spool import Kind, frames, runstate
from simspool.spool.frames import MetricBatch
from simspool.spool.segment_header import STATIC_SIZE, SegmentHeader

from . import directory_tree as tree
from .directory_lines import EVENTS, METRICS, RECORDS, header, line, lines, moment, read_points, strict
from .directory_names import file_name, file_path, suffixed
from .port import File, Range, Recount, Remark, Verdict
from .records import Fact, Gap

OWN = ".simspool"
_RUNS = (OWN, "runs")
_ARTIFACTS = "artifacts.jsonl"
# a run may lie in a folder that is another run's: these names in it are that run's
_TAKEN = frozenset({"run.json", "artifacts", _ARTIFACTS, EVENTS, RECORDS, *METRICS.values(), "readme.txt"})
_ELSEWHERE = frozenset({errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG})


@dataclass(slots=True)
class Commit:
    """What counts of a run. `folder` leads to it from the top; `writers` have (last sequence, chain); `lengths` are in bytes.

    `damaged`: files were shorter than they should be, so that nothing counts; what is there is set aside by the next append.
    """

    form: str
    folder: list[str] = field(default_factory=list)
    writers: dict[str, tuple[int, int]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    damaged: bool = False

    def text(self, run: str) -> bytes:
        """Return it as JSON."""
        marks = {w: list(pair) for w, pair in self.writers.items()}
        said = {"version": 1, "run": run, "format": self.form, "folder": self.folder, "writers": marks, "lengths": self.lengths}
        return json.dumps(said, indent=1, sort_keys=True).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Kept:
    """A file of a run: its name as given, its path in the run's folder, its SHA-256 hex and bytes."""

    name: str
    path: list[str]
    digest: str
    size: int


class Listing:
    """A run's list of files, read as far as it goes. Another thread may read its dicts meanwhile."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """It is not there."""
        self.by_key: dict[str, Kept] = {}
        self.by_digest: dict[str, Kept] = {}
        self.taken: dict[str, str] = {}  # path -> key
        self._of: tuple[Any, ...] = ()
        self.end = 0  # of the last whole line

    def refresh(self, at: int, place: tuple[str, ...]) -> None:
        """Read what is new in the file. Raises OSError."""
        with tree.opened(at, place[-1]) as file:
            info = os.fstat(file.fileno())
            if (place, info.st_dev, info.st_ino) != self._of or info.st_size < self.end:
                self.forget()
                self._of = (place, info.st_dev, info.st_ino)
            file.seek(self.end)
            for text in file:
                if not text.endswith(b"\n"):
                    break  # torn, or being written
                self.end += len(text)
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    said = json.loads(text)
                    kept = Kept(said["name"], said["path"].split("/"), said["sha256"], said["size"])
                    self.by_key[said["key"]] = self.by_digest[kept.digest] = kept
                    self.taken[said["path"]] = said["key"]


class RunFiles:
    """A run below `root`. Every method may block; those that write hold the run's lock. All raise OSError."""

    def __init__(self, root: str, run: str, form: str) -> None:
        self._root, self.run, self._form = root, run, form
        self._listing, self._listed = threading.Lock(), Listing()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with tree.folder(self._root, _RUNS, make=True) as at:
            fd = os.open(f"{self.run}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666, dir_fd=at)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def commit(self) -> Commit:
        """Return what counts: nothing, where files are shorter than they were, or the commit is gone: then all of it is sent again."""
        try:
            with tree.folder(self._root, _RUNS) as at:
                found = tree.read_json(at, f"{self.run}.json")
            writers = {w: (int(mark), int(chain)) for w, (mark, chain) in found["writers"].items()}
            commit = Commit(found["format"], found["folder"], writers, found["lengths"])
            with tree.folder(self._root, commit.folder) as at:
                whole = all((tree.size(at, name) or 0) >= length for name, length in commit.lengths.items())
        except (FileNotFoundError, KeyError, TypeError, AttributeError, ValueError):
            return Commit(self._form)
        return commit if whole else Commit(commit.form, commit.folder, damaged=True)

    def marks(self) -> dict[str, int]:
        """Return each writer's last sequence."""
        return {writer: mark for writer, (mark, _) in self.commit().writers.items()}

    # ------------------------------------------------------------------ records

    def store(self, ranges: Sequence[Range], state: Mapping[str, Any] | None) -> list[Verdict]:
        """Store ranges of this run, in their order, and then its state; one verdict each. What is accepted is durable."""
        with self._locked():
            commit = self.commit()
            new: dict[str, list[bytes]] = {}
            verdicts = [self._take(sent, commit, new) for sent in ranges]
            if not new and not any(v.kind == "accepted" for v in verdicts):
                return verdicts
            self._settle_folder(commit, state)
            with tree.folder(self._root, commit.folder, make=True) as at:
                if commit.damaged and new:
                    for name in (METRICS[commit.form], EVENTS, RECORDS):
                        tree.set_aside(at, name, suffixed(name, f"damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"))
                for name, parts in new.items():
                    begin = commit.lengths.get(name, 0)
                    data = b"".join(parts)
                    commit.lengths[name] = tree.append(at, name, begin, data if begin else header(_form_of(name)) + data)
            if new:
                with tree.folder(self._root, _RUNS) as at:
                    tree.put(at, f"{self.run}.json", commit.text(self.run))
            if state is not None:
                self._describe(commit, state)
            return verdicts

    def _take(self, sent: Range, commit: Commit, new: dict[str, list[bytes]]) -> Verdict:
        mark, chain = commit.writers.get(sent.writer, (0, 0))
        if sent.first > mark + 1:
            return Verdict("retry", mark, chain, "gap")
        if sent.last < mark:
            return Verdict("accepted", mark, chain)
        at_mark, at_end = _chains(sent, mark)
        if at_end != sent.chain_after:
            return Verdict("permanent", mark, chain, "malformed")
        if at_mark != chain:
            return Verdict("permanent", mark, chain, "conflict: the directory has other records of this writer (was a machine cloned?)")
        remarks: list[Remark] = []
        for name, text, record in lines(sent, mark, commit.form):
            new.setdefault(name, []).append(text)
            if not isinstance(record, Gap):
                remarks += self._remarks(sent, record, commit)
        commit.writers[sent.writer] = (sent.last, sent.chain_after)
        if sent.last > mark:
            new.setdefault(METRICS[commit.form], [])
        return Verdict("accepted", sent.last, sent.chain_after, remarks=remarks)

    def _remarks(self, sent: Range, record: Any, commit: Commit) -> Iterator[Remark]:
        if not isinstance(record, Fact):
            return
        if record.kind == Kind.ARTIFACT and isinstance(record.body.get("name"), str):
            given = record.body["name"]
            made = "/".join(file_path(given))
            if made != given:
                yield Remark(self.run, "renamed", f"file {given} as {made}", 1, sent.writer, record.seq)
        elif not record.body and record.kind not in set(Kind):
            yield Remark(self.run, "not kept", f"a record of the unknown kind {record.kind}", 1, sent.writer, record.seq)

    def _settle_folder(self, commit: Commit, state: Mapping[str, Any] | None) -> None:
        """Choose the run's folder, once: <folder>/<name>, or with a suffix where another run has that."""
        if commit.folder:
            return
        state = state or runstate.empty()
        name = str(runstate.value(state, "name") or self.run)
        above = [_folder_name(p) for p in str(runstate.value(state, "folder") or "/").split("/") if p]
        own = _folder_name(name)
        for last in (own, suffixed(own, self.run[-8:]), suffixed(own, self.run)):
            parts = [*above, last]
            with tree.folder(self._root, parts, make=True) as at:
                mine = line({"id": self.run})
                if tree.put(at, "run.json", mine, exclusive=True) or (tree.read_json(at, "run.json") or {}).get("id") == self.run:
                    commit.folder = parts
                    return
        raise OSError(errno.EEXIST, "other runs have all the folders that this one could have", name)

    def _describe(self, commit: Commit, state: Mapping[str, Any]) -> None:
        """Put the run's state into run.json, where it has changed."""
        said = describe(self.run, state or runstate.empty())
        text = json.dumps(strict(said), indent=1, ensure_ascii=True, allow_nan=False, default=str).encode() + b"\n"
        with tree.folder(self._root, commit.folder) as at:
            with contextlib.suppress(FileNotFoundError):
                if tree.read(at, "run.json") == text:
                    return
            tree.put(at, "run.json", text)

    # ------------------------------------------------------------------ files

    def _list(self, folder: Sequence[str]) -> Listing:
        """Return the list as it is now; what was read before is not read again."""
        with self._listing:
            try:
                with tree.folder(self._root, folder) as at:
                    self._listed.refresh(at, (*folder, _ARTIFACTS))
            except FileNotFoundError:
                self._listed.forget()
            return self._listed

    def lacks(self, wanted: Sequence[File]) -> list[str]:
        """Return the keys of those whose files are not there in their whole length."""
        folder = self.commit().folder
        known = self._list(folder).by_key
        missing = []
        for one in wanted:
            found = known.get(one.key)
            if found is None or found.digest != one.digest or not self._is_there(folder, found.path, one.size):
                missing.append(one.key)
        return missing

    def _is_there(self, folder: list[str], parts: list[str], size: int) -> bool:
        try:
            with tree.folder(self._root, [*folder, *parts[:-1]]) as at:
                return tree.size(at, parts[-1]) == size
        except FileNotFoundError:
            return False

    def link_twin(self, digest: str, temporary: Sequence[str]) -> bool:
        """Give a file of this run that has these bytes a second name; False where there is none, or links do not work."""
        folder = self.commit().folder
        kept = self._list(folder).by_digest.get(digest)
        if kept is not None and self._is_there(folder, kept.path, kept.size):
            with tree.folder(self._root, [*folder, *kept.path[:-1]]) as at, tree.folder(self._root, temporary[:-1]) as to:
                return _digest(at, kept.path[-1]) == digest and tree.link(at, kept.path[-1], to, temporary[-1])
        return False

    def adopt(self, file: File, source: Sequence[str], state: Mapping[str, Any] | None) -> None:
        """Give a whole, durable file (its path from the top) its place in the run, and note it in the run's list."""
        with self._locked():
            commit = self.commit()
            if not commit.folder:
                self._settle_folder(commit, state)
                with tree.folder(self._root, _RUNS, make=True) as at:
                    tree.put(at, f"{self.run}.json", commit.text(self.run))
            taken = self._list(commit.folder).taken
            with tree.folder(self._root, source[:-1]) as source_at:
                for parts in _places(file):
                    if taken.get("/".join(parts), file.key) == file.key and self._place(commit, file, source_at, source[-1], parts):
                        break
                else:
                    raise OSError(errno.EEXIST, "other files have all the names that this one could have", file.name)
            said = {"key": file.key, "name": file.name, "category": file.category, "path": "/".join(parts), "sha256": file.digest}
            with tree.folder(self._root, commit.folder) as at:
                # behind the last whole line: one that was torn goes
                tree.append(at, _ARTIFACTS, self._list(commit.folder).end, line({**said, "size": file.size, "mime": file.mime}))

    def _place(self, commit: Commit, file: File, source: int, temporary: str, parts: list[str]) -> bool:
        """Give the file this path in the run's folder; False where something else is there, or in the way."""
        try:
            with tree.folder(self._root, [*commit.folder, *parts[:-1]], make=True) as at:
                return tree.publish(source, temporary, at, parts[-1]) or _digest(at, parts[-1]) == file.digest
        except OSError as error:
            if error.errno not in _ELSEWHERE:
                raise
            return False  # a file where a folder should be: "a" was saved, and "a/b"

    # ------------------------------------------------------------------ counting

    def recount(self) -> Recount | None:
        """Count what the files hold, and read every file again; None for a run that is not there."""
        commit = self.commit()
        if not commit.writers and not commit.folder:
            return None
        metrics: dict[str, int] = {}
        first: dict[str, tuple[int, str, float]] = {}
        last: dict[str, tuple[int, str, float]] = {}
        name = METRICS[commit.form]
        with tree.folder(self._root, commit.folder) as at:
            for metric, step, value, when in read_points(tree.lines(at, name, commit.lengths.get(name, 0)), commit.form):
                metrics[metric] = metrics.get(metric, 0) + 1
                if metric not in first or (step, when) < first[metric][:2]:
                    first[metric] = (step, when, value)
                if metric not in last or (step, when) >= last[metric][:2]:
                    last[metric] = (step, when, value)
            events = sum(1 for _ in tree.lines(at, EVENTS, commit.lengths.get(EVENTS, 0)))
            said = tree.read_json(at, "run.json") or {}
            saved = _saved(tree.lines(at, RECORDS, commit.lengths.get(RECORDS, 0)))
        files: dict[str, str | int] = {}
        listed = list(self._list(commit.folder).by_key.items())
        for key, kept in sorted(listed, key=lambda item: saved.get(item[0], ""), reverse=True):  # of one name, the last counts
            with contextlib.suppress(FileNotFoundError), tree.folder(self._root, [*commit.folder, *kept.path[:-1]]) as at:
                files[f"{kept.name} ({key})" if kept.name in files else kept.name] = _digest(at, kept.path[-1])
        return Recount(
            metrics, events, files, said.get("status"), {m: (s, v) for m, (s, _, v) in first.items()},
            {m: (s, v) for m, (s, _, v) in last.items()}, marks={w: mark for w, (mark, _) in commit.writers.items()},
        )  # fmt: skip


def _places(file: File) -> Iterator[list[str]]:
    """Yield the paths in a run's folder that a file may have, the nicest first."""
    above, path = ["artifacts", file_name(file.category or "other")], file_path(file.name)
    yield [*above, *path]
    flat = file_name("_".join(path))
    for suffix in (str(file.seq), file.key):
        yield [*above, *path[:-1], suffixed(path[-1], suffix)]
        yield [*above, suffixed(flat, suffix)]


def _saved(found: Iterable[bytes]) -> dict[str, str]:
    """Return when the files of a file of records were saved, by key. Raises ValueError or KeyError for lines that are none of ours."""
    said = (json.loads(text) for text in found if b'"kind":"artifact"' in text)
    return {f"{one['writer']}.{one['seq']}": one["timestamp"] for one in said if one["kind"] == "artifact"}


def describe(run: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what run.json says of a run."""
    began, ended = runstate.started(state), runstate.finished(state)
    said = {
        "id": run, "name": runstate.value(state, "name"), "folder": runstate.value(state, "folder"),
        "status": runstate.status(state), "reason": runstate.reason(state),
        "started": moment(began // 1000) if began else None, "ended": moment(ended // 1000) if ended else None,
        "description": runstate.value(state, "description"), "tags": runstate.tags(state), "metadata": runstate.metadata(state),
        "alerts": {name: {"state": a["state"], "reason": a["reason"]} for name, a in runstate.alerts(state).items()},
        "system": runstate.value(state, "system"),
    }  # fmt: skip
    return {key: value for key, value in said.items() if value not in (None, {}, [])}


def _folder_name(text: str) -> str:
    name = file_name(text)
    return f"_{name}" if name.lower() in _TAKEN else name


def _form_of(name: str) -> str:
    return next((form for form, file in METRICS.items() if file == name), "")


def _chains(sent: Range, mark: int) -> tuple[int, int]:
    """Return the chain of a range's records at a mark inside it (or just before it), and at its end."""
    size = int.from_bytes(sent.data[:4], "little")
    head = json.loads(sent.data[4 : 4 + size])
    seed = SegmentHeader.unpack(sent.data[4 + size : 4 + size + STATIC_SIZE]).seed
    numbered: list[tuple[int, int]] = []
    for item in frames.decode(memoryview(sent.data)[4 + size + STATIC_SIZE :], seed, {}).items:
        numbered += [(row[1], row[-1]) for row in item.rows] if isinstance(item, MetricBatch) else [(item.seq, item.crc)]
    below = [(seq, crc) for seq, crc in numbered if seq <= mark]
    at_mark = chain_over(below, head["chain"], sent.first, mark) if sent.first - 1 <= mark <= sent.last else NONE
    return at_mark, chain_over(numbered, head["chain"], sent.first, sent.last)


def _digest(at: int, name: str) -> str:
    """Return the SHA-256 hex of a file's bytes."""
    with tree.opened(at, name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

