"""A bundle is opened: its manifest is checked before anything of it is believed, its members are read only as the manifest says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from simspool.agent.carry.parts import HEAD, RunPart, SegmentPart
from simspool.spool import records

from . import signing
from .blocks import read_blocks, workers
from .errors import BadBundle, VolumeMissing
from .manifest import LIMIT, Manifest, Member, decode
from .signing import Trusted
from .volumes import VolumeReader, open_file
from .writing import MANIFEST, SIGNATURE


class Bundle:
    """An open bundle. A context manager; confined to one thread, which `pool` helps.

    `open_bundle` makes one. `made_by` is what is to be said of its signature, `missing` the names of the volumes that are not there.
    """

    def __init__(self, path: str, manifest: Manifest, made_by: str) -> None:
        self.path, self.manifest, self.made_by = path, manifest, made_by
        self._volumes = VolumeReader(path, manifest.volumes)
        self.missing = self._volumes.missing
        at = 0
        self._starts: list[int] = []
        for member in manifest.members:
            self._starts.append(at)
            at += member.stored

    def runs(self) -> Iterator[tuple[int, list[int]]]:
        """Yield (index of a run's member, indices of its other members), in order."""
        first, rest = -1, list[int]()
        for index, member in enumerate(self.manifest.members):
            if member.kind == "run":
                if first >= 0:
                    yield first, rest
                first, rest = index, []
            else:
                rest.append(index)
        if first >= 0:
            yield first, rest

    def blocks(self, index: int, pool: ThreadPoolExecutor) -> Iterator[bytes]:
        """Yield a member's content in pieces of 1 MiB at most; it is not compared with its digest yet. Raises VolumeMissing, BadBundle."""
        member, at = self.manifest.members[index], [self._starts[index]]
        lacking = self._volumes.lacking(at[0], member.stored)
        if lacking:
            raise VolumeMissing(lacking)

        def read(length: int) -> bytes:
            data = self._volumes.read(at[0], length)
            at[0] += length
            return data

        return read_blocks(read, member.size, member.stored, pool)

    def content(self, index: int, pool: ThreadPoolExecutor) -> bytes:
        """Return a small member's content, which is what its digest says. Raises VolumeMissing, BadBundle."""
        data = b"".join(self.blocks(index, pool))
        if hashlib.sha256(data).hexdigest() != self.manifest.members[index].sha256:
            raise self.altered(index)
        return data

    def run_part(self, index: int, pool: ThreadPoolExecutor) -> RunPart:
        """Return what a run's member says. Raises VolumeMissing, BadBundle."""
        try:
            body = records.decode(self.content(index, pool))
            info, shed, final = body["info"], body["shed"], body["final"]
            ends = {writer: (int(number), int(end)) for writer, (number, end) in final.items()}
            if not isinstance(info, dict) or not isinstance(shed, dict | None) or len(body) != 3:
                raise ValueError("its fields are not those of a run")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadBundle(f"{self.path}: the state of run {self.manifest.members[index].run} cannot be read: {error}"[:500]) from None
        return RunPart(self.manifest.members[index].run, info, shed, ends)

    def segment(self, index: int, pool: ThreadPoolExecutor) -> tuple[SegmentPart, bytes]:
        """Return a part of a segment and its bytes. Raises VolumeMissing, BadBundle."""
        member, data = self.manifest.members[index], self.content(index, pool)
        part = SegmentPart(
            member.run, member.writer, member.number, member.start, member.end, member.sealed, data[:HEAD], member.before, member.after,
            member.previous, member.previous_end,
        )  # fmt: skip
        return part, data[HEAD:]

    def altered(self, index: int) -> BadBundle:
        """Return the error for a member that is not what its digest says."""
        member = self.manifest.members[index]
        names = ", ".join(self._volumes.names(self._starts[index], member.stored))
        return BadBundle(f"{self.path}: {describe(member)} in {names} is altered: copy it again")

    def close(self) -> None:
        """Close its files."""
        self._volumes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def describe(member: Member) -> str:
    """Return a member in words."""
    if member.kind == "blob":
        return f"the file {member.sha256[:12]} of run {member.run}"
    if member.kind == "segment":
        return f"a part of segment {member.number} of writer {member.writer}"
    return f"the state of run {member.run}"


def open_bundle(path: str, trusted: tuple[Trusted, ...] = (), *, allow_unsigned: bool = False) -> Bundle:
    """Open a bundle: signature, manifest and the volumes' sizes are right then. The members' own digests are checked as they are read.

    Raises BadBundle for what is no bundle, altered or cut, BundleRefused for a signature that the settings do not allow, NewerFormat.
    """
    path = os.path.normpath(path)
    document = _read(path, MANIFEST, LIMIT)
    if document is None:
        what = "it has no manifest.json" if os.path.isdir(path) else "there is no such folder"
        raise BadBundle(f"{path} is no bundle: {what}")
    signature = _read(path, SIGNATURE, signing.LIMIT)
    # whoever is not trusted gets no further: not even the manifest is parsed
    made_by = signing.verify(document, signature, signing.BUNDLE, trusted, allow_unsigned=allow_unsigned, what=path)
    try:
        manifest = decode(document)
    except BadBundle as error:
        raise BadBundle(f"{path}: {error}") from None
    return Bundle(path, manifest, made_by)


def _read(folder: str, name: str, limit: int) -> bytes | None:
    try:
        fd, size = open_file(folder, name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with os.fdopen(fd, "rb") as file:
        if size > limit:
            raise BadBundle(f"{os.path.join(folder, name)} is over {limit} bytes: this is no bundle that simspool made")
        return file.read(limit + 1)


def summary(bundle: Bundle) -> dict[str, Any]:
    """Return what a bundle is, as JSON."""
    manifest = bundle.manifest
    by_kind = {kind: [m for m in manifest.members if m.kind == kind] for kind in ("run", "segment", "blob")}
    return {
        "path": bundle.path, "id": manifest.id, "from": manifest.origin, "to": manifest.to, "target": manifest.target,
        "created": manifest.created, "receipt": manifest.receipt, "signature": bundle.made_by, "volumes": len(manifest.volumes),
        "missing": bundle.missing, "stored": sum(manifest.volumes), "content": manifest.content, "runs": len(by_kind["run"]),
        "segments": len(by_kind["segment"]), "record_bytes": sum(m.size - HEAD for m in by_kind["segment"]),
        "files": len(by_kind["blob"]), "file_bytes": sum(m.size for m in by_kind["blob"]),
    }  # fmt: skip


def verify_members(bundle: Bundle, progress: Callable[[int], None]) -> list[str]:
    """Read every member that is there, and return what is said of those that are not what their digests say."""
    found, done = [], 0
    with workers() as pool:
        for index, member in enumerate(bundle.manifest.members):
            hasher = hashlib.sha256()
            try:
                for block in bundle.blocks(index, pool):
                    hasher.update(block)
                    done += len(block)
                    progress(done)
                if hasher.hexdigest() != member.sha256:
                    found.append(str(bundle.altered(index)))
            except VolumeMissing:
                continue
            except BadBundle as error:
                found.append(f"{bundle.altered(index)} ({error})")
    return found
