"""A bundle is put into a spool: member by member, each only when its digest is right, none under a name that the bundle chose."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from simspool.agent.carry.incoming import Incoming
from simspool.agent.carry.parts import HEAD, BlobPart, NotTaken, RunPart
from simspool.agent.catalog import Catalog
from simspool.agent.exit_codes import ExitCode
from simspool.spool import Spool

from .blocks import workers
from .errors import BadBundle, BundleRefused, NoRoom, VolumeMissing
from .reading import Bundle

_REASONS = 20


@dataclass(slots=True)
class Taken:
    """What an import did. `new_record_bytes`: bytes of segments that were new here, `new_files` and `new_file_bytes` of files.

    `missing`: volumes that are not there; `altered`: members that are not what the manifest says; `refused`: by run (or writer, or file),
    why it cannot be here. What is in none of them is here now, durably.
    """

    bundle: str
    origin: str
    made_by: str
    runs: int = 0
    new_record_bytes: int = 0
    new_files: int = 0
    new_file_bytes: int = 0
    missing: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def nothing_new(self) -> bool:
        """Whether everything was here before."""
        return not (self.new_record_bytes or self.new_files)

    @property
    def exit_code(self) -> ExitCode:
        """The command's exit code: damage first, then refusals."""
        return ExitCode.DAMAGE if self.missing or self.altered else ExitCode.REFUSED if self.refused else ExitCode.OK

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**asdict(self), "nothing_new": self.nothing_new, "exit_code": int(self.exit_code)}


def take(bundle: Bundle, spool: Spool, catalog: Catalog, progress: Callable[[int, int], None], via: str = "bundle") -> Taken:
    """Put what is in a bundle into the spool; `progress` is told the bytes done, and of how many; `via` is noted in new runs.

    Safe to repeat, and to be killed anywhere; works beside a running agent. Raises BundleRefused for a bundle that is not for this spool,
    or has no room here, Locked while another import goes on, OSError where the disk refuses.
    """
    manifest = bundle.manifest
    if manifest.origin == spool.id:
        raise BundleRefused(f"{bundle.path} was made from this very spool: it is for another one, on the other side")
    if manifest.to and manifest.to != spool.id:
        raise BundleRefused(
            f"{bundle.path} builds on what the spool {manifest.to} has, and this is {spool.id}: import it there, or have one made by "
            "`agent bundle create --full`"
        )
    _check_room(bundle, spool)
    with workers() as pool, Incoming(spool, manifest.origin, via=via, pruned=_pruned(catalog)) as incoming:
        return _Taking(bundle, incoming, pool, progress).run()


def _check_room(bundle: Bundle, spool: Spool) -> None:
    here = 0
    for member in bundle.manifest.members:
        if member.kind == "blob":
            try:
                here += member.size if os.stat(spool.pool_path(member.sha256)).st_size == member.size else 0
            except OSError:
                continue
    found = os.statvfs(spool.path)
    needed, free = bundle.manifest.content - here, found.f_bavail * found.f_frsize
    if needed > free:
        raise NoRoom(f"{bundle.path} has {needed} bytes, and {free} are free on the disk of {spool.path}: make room, then try again")


def _pruned(catalog: Catalog) -> Callable[[str], Mapping[str, int] | None]:
    def look(run: str) -> Mapping[str, int] | None:
        row = catalog.one('SELECT "last" FROM pruned WHERE run = ?', (run,))
        return None if row is None else dict(json.loads(row[0]))

    return look


class _Taking:
    """One import."""

    def __init__(self, bundle: Bundle, incoming: Incoming, pool: ThreadPoolExecutor, progress: Callable[[int, int], None]) -> None:
        self._bundle, self._incoming, self._pool, self._progress = bundle, incoming, pool, progress
        self._members = bundle.manifest.members
        self._total, self._done = bundle.manifest.content, 0
        self._broken: set[str] = set()  # writers of which a part could not be put here: what follows it cannot either
        self.taken = Taken(bundle.manifest.id, bundle.manifest.origin, bundle.made_by, missing=list(bundle.missing))

    def run(self) -> Taken:
        """Do it: the runs' own state first, since a file may be of several."""
        parts: dict[int, RunPart] = {}
        for first, _ in self._bundle.runs():
            part = self._run_part(first)
            if part is not None:
                parts[first] = part
        for first, part in list(parts.items()):
            try:
                self._incoming.begin_run(part)
            except NotTaken as why:
                self._refuse(part.run, why)
                del parts[first]
        accepted = {part.run for part in parts.values()}
        for first, rest in self._bundle.runs():
            for index in rest:
                self._member(index, accepted)
            if first in parts:
                self._end(parts[first])
        return self.taken

    def _run_part(self, index: int) -> RunPart | None:
        member = self._members[index]
        try:
            part = self._bundle.run_part(index, self._pool)
            self._incoming.check_run(part)
        except VolumeMissing:
            return None
        except BadBundle as why:
            self._alter(why)
            return None
        except NotTaken as why:
            self._refuse(member.run, why)
            return None
        finally:
            self._go_on(member.size)
        return part

    def _member(self, index: int, accepted: set[str]) -> None:
        member = self._members[index]
        try:
            if member.kind == "blob":
                self._blob(index, [run for run in member.runs if run in accepted])
            elif member.run in accepted and member.writer not in self._broken:
                try:
                    part, frames = self._bundle.segment(index, self._pool)
                    if self._incoming.segment(part, frames):
                        self.taken.new_record_bytes += member.size - HEAD
                except (BadBundle, NotTaken):
                    self._broken.add(member.writer)
                    raise
        except VolumeMissing:
            pass  # they are named once, for all
        except BadBundle:
            self._alter(self._bundle.altered(index))
        except NotTaken as why:
            self._refuse(member.writer or member.sha256, why)
        if member.kind != "blob":
            self._go_on(member.size)

    def _blob(self, index: int, runs: list[str]) -> None:
        member, before = self._members[index], self._done

        def counted() -> Iterator[bytes]:
            for block in self._bundle.blocks(index, self._pool):
                yield block
                self._go_on(len(block))

        try:
            if runs and self._incoming.blob(BlobPart(member.sha256, member.size, tuple(runs)), counted()):
                self.taken.new_files += 1
                self.taken.new_file_bytes += member.size
        except NotTaken:
            if self._is_altered(index):
                raise self._bundle.altered(index) from None
            raise
        finally:
            self._done = before
            self._go_on(member.size)

    def _is_altered(self, index: int) -> bool:
        hasher = hashlib.sha256()
        for block in self._bundle.blocks(index, self._pool):
            hasher.update(block)
        return hasher.hexdigest() != self._members[index].sha256

    def _end(self, part: RunPart) -> None:
        self._incoming.end_run(part)
        self.taken.runs += 1

    def _refuse(self, what: str, why: Exception) -> None:
        if len(self.taken.refused) < _REASONS:
            self.taken.refused[what] = str(why)

    def _alter(self, why: Exception) -> None:
        if len(self.taken.altered) < _REASONS:
            self.taken.altered.append(str(why))

    def _go_on(self, count: int) -> None:
        self._done += count
        self._progress(self._done, self._total)
