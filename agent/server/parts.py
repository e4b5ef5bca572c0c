"""Uploads in parts: what has arrived and is verified stays, over broken connections, kills and restarts, until the whole is there.

An upload is two files in `blobs/uploads/`: the bytes, each part written in its place, and the list of parts that are durable there. A part
is written only after it was verified, and never again; it is listed only after it was synced. The whole is hashed behind the parts as they
arrive, from the disk, and becomes a blob only when its digest is right.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from simspool.spool.ids import is_digest

from .blobstore import BlobStore
from .errors import Conflict, Invalid, NoRoom, TooMany

PART = 1 << 20  # bytes
PARTS_A_REQUEST = 8
CHECKSUM = 32  # bytes of SHA-256 behind each part
KEPT = 7 * 86400.0  # seconds that an upload is kept after its last part
OPEN_UPLOADS = 256  # of a user
RESERVE = 256 << 20  # bytes of the disk that uploads leave for records
_HASHED_AT_ONCE, _THREADS = 8, 4
_VERIFYING = 10.0  # seconds that an answer waits for the verification at most

T = TypeVar("T")


class Upload:
    """One user's upload of one content. `have` has a byte for each part: 1 when it is durable. Confined to the event loop."""

    def __init__(self, path: Path, user: str, digest: str, size: int, part: int, have: bytearray, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self.path, self.user, self.digest, self.size, self.part, self.have = path, user, digest, size, part, have
        self.count = len(have)
        self.lock = asyncio.Lock()
        self._writing: set[int] = set()
        self._synced: list[tuple[int, asyncio.Future[None]]] = []
        self._sync_task: asyncio.Task[None] | None = None
        self._hasher, self._hashed = hashlib.sha256(), 0
        self._hash_task: asyncio.Task[None] | None = None

    @property
    def listing(self) -> Path:
        """Where the durable parts are listed: a line of JSON, then `have`."""
        return listing_of(self.path)

    @property
    def left(self) -> int:
        """Bytes that are still to come, about."""
        return min(self.have.count(0) * self.part, self.size)

    @property
    def unverified(self) -> int:
        """Bytes that the whole's digest does not cover yet."""
        return max(self.size - self._hashed * self.part, 0)

    def length(self, number: int) -> int:
        """Return a part's bytes: all have the same number, but the last."""
        return min(self.part, self.size - number * self.part)

    def missing(self, most: int = 1000) -> list[list[int]]:
        """Return which parts are still to come, as [first, last]; at most so many spans."""
        spans: list[list[int]] = []
        at = self.have.find(0)
        while at >= 0 and len(spans) < most:
            end = self.have.find(1, at)
            spans.append([at, (end if end >= 0 else self.count) - 1])
            at = self.have.find(0, end) if end >= 0 else -1
        return spans

    async def receive(self, body: AsyncIterator[bytes], first: int, count: int) -> None:
        """Take parts, each followed by its SHA-256. What was verified is kept, also when the body breaks off behind it.

        Durable when this returns. Raises Invalid for a part that differs from its checksum.
        """
        futures: list[asyncio.Future[None]] = []
        number, end = first, first + count
        buffer = memoryview(bytearray(self.part + CHECKSUM))
        part, filled = buffer[: self.length(number) + CHECKSUM], 0
        try:
            async for block in body:
                view = memoryview(block)
                while view and number < end:
                    taken = min(len(view), len(part) - filled)
                    part[filled : filled + taken] = view[:taken]
                    view, filled = view[taken:], filled + taken
                    if filled == len(part):
                        future = await self._take(number, part)
                        if future is not None:
                            futures.append(future)
                        number += 1
                        part, filled = buffer[: self.length(number) + CHECKSUM if number < end else 0], 0
        finally:
            if futures:
                await asyncio.shield(asyncio.gather(*futures))
        if number < end:
            raise Invalid(f"{count} parts from {first} on were announced, and {number - first} came")

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def _take(self, number: int, data: memoryview) -> asyncio.Future[None] | None:
        if self.have[number] or number in self._writing:
            return None  # somebody else is as good: what is listed is never written again
        self._writing.add(number)
        # a request that is given up does not stop the thread that writes: until it has, nobody else may
        return await asyncio.shield(asyncio.ensure_future(self._write(number, data)))

    async def _write(self, number: int, data: memoryview) -> asyncio.Future[None]:
        try:
            good = await self._run(self._put, number * self.part, data)
        except OSError:
            self._writing.discard(number)
            raise
        if not good:
            self._writing.discard(number)
            raise Invalid(f"part {number} does not have its checksum: it was damaged on the way, send it again")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._synced.append((number, future))
        if self._sync_task is None or self._sync_task.done():
            self._sync_task = asyncio.create_task(self._sync_all())
        return future

    def _put(self, at: int, data: memoryview) -> bool:
        body = data[:-CHECKSUM]
        if hashlib.sha256(body).digest() != data[-CHECKSUM:]:
            return False
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            while body:
                written = os.pwrite(fd, body, at)
                body, at = body[written:], at + written
        finally:
            os.close(fd)
        return True

    async def _sync_all(self) -> None:
        """Make parts durable, then list them; those that arrive meanwhile share the next turn."""
        while self._synced:
            group, self._synced = self._synced, []
            error: OSError | None = None
            try:
                await self._run(self._list, [number for number, _ in group])
            except OSError as failed:
                error = failed
            for number, future in group:
                self._writing.discard(number)
                if error is None:
                    self.have[number] = 1
                if not future.done():
                    future.set_result(None) if error is None else future.set_exception(error)
            self.verify_on()

    def _list(self, numbers: list[int]) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)
        fd = os.open(self.listing, os.O_RDWR | os.O_CLOEXEC)
        try:
            start = os.fstat(fd).st_size - self.count
            for number in numbers:
                os.pwrite(fd, b"\1", start + number)
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def verify_on(self) -> None:
        """Hash what is there without a gap, in the background."""
        if self._hash_task is None or self._hash_task.done():
            self._hash_task = asyncio.create_task(self._hash_all())

    async def _hash_all(self) -> None:
        while self._hashed < self.count and self.have[self._hashed]:
            gap = self.have.find(0, self._hashed)
            until = min(self._hashed + _HASHED_AT_ONCE, gap if gap >= 0 else self.count)
            try:
                await self._run(self._hash, self._hashed, until)
            except OSError:
                self._hasher, self._hashed = hashlib.sha256(), 0
                raise
            self._hashed = until

    def _hash(self, first: int, until: int) -> None:
        whole = memoryview(bytearray(self.part))
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for number in range(first, until):
                data = whole[: self.length(number)]
                if os.preadv(fd, [data], number * self.part) != len(data):
                    raise OSError(f"{self.path} is shorter than what it received")
                self._hasher.update(data)
        finally:
            os.close(fd)

    async def verified(self) -> bool:
        """Wait a while for the verification of the whole; False while it goes on. All parts must be there.

        Raises Invalid when the digest is wrong.
        """
        if self._hashed < self.count:
            self.verify_on()
            assert self._hash_task is not None
            try:
                await asyncio.wait_for(asyncio.shield(self._hash_task), _VERIFYING)
            except TimeoutError:
                return False
        if self._hasher.hexdigest() != self.digest:
            raise Invalid("the SHA256 you specified did not match the calculated checksum: send the bytes that have this digest")
        return True

    async def settled(self) -> None:
        """Wait until nothing is being synced, and stop hashing; for a clean end."""
        if self._hash_task is not None:
            self._hash_task.cancel()
        tasks = [task for task in (self._sync_task, self._hash_task) if task is not None]
        if tasks:
            await asyncio.wait(tasks)


def listing_of(path: Path) -> Path:
    """Return where the parts of an upload are listed."""
    return path.with_name(path.name + ".parts")


class Uploads:
    """The uploads that are open. What a dead server left is found again."""

    def __init__(self, root: Path, blobs: BlobStore, *, reserve: int = RESERVE) -> None:
        """Open the folder `uploads` in `root`. Raises OSError."""
        self._blobs, self._reserve = blobs, reserve
        self._folder = root / "uploads"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._open: dict[str, Upload] = {}
        # of their own: a disk that is slow with large files must not hold up the records
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="uploads")
        for path in [p for p in self._folder.iterdir() if p.suffix != ".parts"]:
            if not listing_of(path).exists():
                self._blobs.discard(path)
        for listing in self._folder.glob("*.parts"):
            found = self._read(listing)
            if found is None:
                self._blobs.discard(listing.with_suffix(""), listing)
            else:
                self._open[found.path.name] = found

    def _read(self, listing: Path) -> Upload | None:
        """Return the upload that a listing is of; None for what a kill left of one that never began, or had ended."""
        path = listing.with_suffix("")
        with listing.open("rb") as file:
            head, have = file.readline(), bytearray(file.read())
        try:
            body = json.loads(head)
            user, digest, size, part = str(body["user"]), str(body["digest"]), int(body["size"]), int(body["part"])
        except (ValueError, KeyError, TypeError):
            return None
        if not is_digest(digest) or size < 1 or part < 1 or len(have) != -(-size // part) or have.strip(b"\0\1"):
            return None
        there = path if path.exists() else self._blobs.path(digest)
        if not there.exists() or there.stat().st_size != size or (there is not path and not all(have)):
            return None
        return Upload(path, user, digest, size, part, have, self._threads)

    async def _run(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    def has(self, upload: Upload) -> bool:
        """Say whether it is still open."""
        return self._open.get(upload.path.name) is upload

    def find(self, user: str, digest: str, size: int) -> Upload:
        """Return an upload that is open. Raises Conflict where none is (any more): it is to be opened first."""
        found = self._open.get(_name(user, digest, size))
        if found is None:
            raise Conflict("this upload is not open (any more): open it again and send what is missing then")
        return found

    async def open(self, user: str, digest: str, size: int) -> Upload:
        """Return the user's upload of this content, made when there is none. Raises TooMany and NoRoom: later it may be taken."""
        name = _name(user, digest, size)
        found = self._open.get(name)
        if found is not None:
            found.verify_on()  # after a restart, what is there already
            return found
        if sum(1 for u in self._open.values() if u.user == user) >= OPEN_UPLOADS:
            raise TooMany(f"{OPEN_UPLOADS} uploads are open already: finish some, or wait until they expire")
        disk = os.statvfs(self._folder)
        room = disk.f_bavail * disk.f_frsize - self._reserve - sum(u.left for u in self._open.values())
        if size > room:
            raise NoRoom(f"{size} bytes do not fit on the server's disk now: {max(room, 0)} are free for uploads")
        made = self._open[name] = Upload(
            self._folder / name, user, digest, size, PART, bytearray(-(-size // PART)), self._threads
        )  # fmt: skip
        try:
            async with made.lock:
                await self._run(self._make, made)
        except BaseException:
            self._open.pop(name, None)
            await self._run(self._blobs.discard, made.path, made.listing)
            raise
        return made

    def _make(self, upload: Upload) -> None:
        head = {"user": upload.user, "digest": upload.digest, "size": upload.size, "part": upload.part}
        with upload.path.open("xb") as file:
            file.truncate(upload.size)
        self._blobs.write(upload.listing, json.dumps(head).encode() + b"\n" + upload.have)

    async def finish(self, upload: Upload) -> bool:
        """Make a blob of an upload that has all parts, durable when True is returned; False while it is still being verified.

        It stays listed, so that a kill loses nothing: `forget` it when the store knows the blob. Raises Invalid where the digest is wrong:
        then it is dropped.
        """
        if not upload.path.exists():
            return True  # it is in its place since before a kill
        try:
            if not await upload.verified():
                return False
        except Invalid:
            await self.forget(upload)
            raise
        await self._run(self._blobs.adopt, upload.path, upload.digest)
        return True

    async def forget(self, upload: Upload) -> None:
        """Remove what is left of an upload."""
        self._open.pop(upload.path.name, None)
        await upload.settled()
        await self._run(self._blobs.discard, upload.path, upload.listing)

    async def sweep(self) -> int:
        """Remove the uploads that got nothing for 7 days; return how many."""
        old = [u for u in self._open.values() if not u.lock.locked() and u.listing.stat().st_mtime < time.time() - KEPT]
        for upload in old:
            await self.forget(upload)
        return len(old)

    async def close(self) -> None:
        """Let what is being written come to its end."""
        for upload in self._open.values():
            await upload.settled()
        self._threads.shutdown()


def _name(user: str, digest: str, size: int) -> str:
    return hashlib.sha256(f"{user}\0{digest}\0{size}".encode()).hexdigest()[:40]
