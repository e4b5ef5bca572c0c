"""How a member's content lies in the volumes: blocks of 1 MiB, each a zstd frame, or as it is where that is no smaller.

A block's stored form is four bytes (its length; the highest bit is set where it is not compressed), then its bytes. A reader knows each
block's true size before it looks at it: 1 MiB, the last one the rest. So nothing that a bundle says makes it decompress more than that.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

from simspool.spool.errors import UnreadableFile

from .errors import BadBundle

BLOCK = 1 << 20
HEADER = 4
# Level 1 makes rows of numbers as small as level 3 does, at twice its speed. A hash table that stays in the nearest cache and no matches
# below 7 bytes make it another fifth faster, and those no larger; source code becomes 5 % larger.
_LEVEL, _HASH_LOG, _MIN_MATCH = 1, 12, 7
_RAW = 1 << 31
_LENGTH = struct.Struct(">I")
_mine = threading.local()  # zstd's contexts serve one thread at a time

T = TypeVar("T")


def count(size: int) -> int:
    """Return how many blocks content of so many bytes has."""
    return -(-size // BLOCK)


def most_stored(size: int) -> int:
    """Return the most bytes that content of so many bytes takes in the volumes."""
    return size + HEADER * count(size)


def pack(block: bytes) -> tuple[bytes, bytes]:
    """Return a block's stored form: its four bytes, and what follows them."""
    import zstandard

    packer = getattr(_mine, "packer", None)
    if packer is None:
        how = zstandard.ZstdCompressionParameters.from_level(
            _LEVEL, source_size=BLOCK, hash_log=_HASH_LOG, min_match=_MIN_MATCH, write_content_size=True, write_checksum=False
        )
        packer = _mine.packer = zstandard.ZstdCompressor(compression_params=how)
    packed: bytes = packer.compress(block)
    if len(packed) < len(block):
        return _LENGTH.pack(len(packed)), packed
    return _LENGTH.pack(len(block) | _RAW), block


class FilePacker:
    """Packs a file of `size` bytes block by block, and hashes it on the way: `jobs` are for `in_order`, `hexdigest` is right after them.

    A thread of the pool reads a block, hashes it in its turn, and packs it: so it stays in that processor's cache. The jobs raise
    UnreadableFile, also for a file that has become shorter.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._size = fd, size
        self._digest = hashlib.sha256()
        self._hashed, self._failed = 0, size  # up to where; from where on nothing can be
        self._turn = threading.Condition()

    def jobs(self) -> Iterator[Callable[[], tuple[bytes, bytes]]]:
        """Yield what packs the blocks, in order."""
        return (partial(self._pack, at) for at in range(0, self._size, BLOCK))

    def hexdigest(self) -> str:
        """Return the SHA-256 of everything, in hex."""
        return self._digest.hexdigest()

    def _pack(self, at: int) -> tuple[bytes, bytes]:
        size = min(BLOCK, self._size - at)
        try:
            block = self._read(size, at)
            self._hash(block, at)
        except BaseException:
            with self._turn:  # those behind it would wait for ever
                self._failed = min(self._failed, at)
                self._turn.notify_all()
            raise
        return pack(block)

    def _read(self, size: int, at: int) -> bytes:
        try:
            block = os.pread(self._fd, size, at)
        except OSError as error:
            raise UnreadableFile(error.errno, f"the file cannot be read: {error.strerror}") from None
        if len(block) != size:
            raise UnreadableFile(errno.EIO, "the file became shorter while it was read")
        return block

    def _hash(self, block: bytes, at: int) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._hashed == at or self._failed < at)
            if self._failed < at:
                raise UnreadableFile(errno.EIO, "what comes before it could not be read")
        self._digest.update(block)
        with self._turn:
            self._hashed = at + len(block)
            self._turn.notify_all()


def unpack(stored: bytes, size: int) -> bytes:
    """Return the content of a block of `size` bytes. Raises BadBundle; never makes more than `size` bytes."""
    import zstandard

    unpacker = getattr(_mine, "unpacker", None)
    if unpacker is None:
        unpacker = _mine.unpacker = zstandard.ZstdDecompressor(max_window_size=BLOCK)
    try:
        found = zstandard.get_frame_parameters(stored)
        if found.content_size != size or found.dict_id:
            raise BadBundle("a block is not of the size that it should have: the bundle was altered; copy it again")
        block: bytes = unpacker.decompress(stored, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BadBundle(f"a block cannot be decompressed ({error}): the bundle was altered; copy it again") from None
    if len(block) != size:
        raise BadBundle("a block is shorter than it should be: the bundle was altered; copy it again")
    return block


def read_blocks(read: Callable[[int], bytes], size: int, stored: int, pool: ThreadPoolExecutor) -> Iterator[bytes]:
    """Yield the content of a member, block by block; `read` gives exactly so many of its `stored` bytes, in order. Raises BadBundle."""

    def jobs() -> Iterator[Callable[[], bytes] | bytes]:
        left, rest = stored, size
        while rest:
            expected = min(BLOCK, rest)
            word = _LENGTH.unpack(read(HEADER))[0] if left >= HEADER else 0
            raw, length = bool(word & _RAW), word & ~_RAW
            left -= HEADER + length
            if left < 0 or not 0 < length <= expected or (raw and length != expected):
                raise BadBundle("a block's length is not possible: the bundle was altered; copy it again")
            block = read(length)
            rest -= expected
            yield block if raw else partial(unpack, block, expected)
        if left:
            raise BadBundle("a member has bytes that belong to no block: the bundle was altered; copy it again")

    return in_order(pool, jobs())


def in_order(pool: ThreadPoolExecutor, jobs: Iterable[Callable[[], T] | T], ahead: int = 4) -> Generator[T, None, None]:
    """Yield what the jobs return, in order; the pool is a few of them ahead. The jobs are found in the caller's thread.

    A job may be its own result, and may wait for those before it. None runs any more when this has ended, or was closed.
    """
    waiting: deque[Future[T] | T] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(job) if callable(job) else job)
            if len(waiting) > ahead:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        # the last ones first: none waits for these
        wait([one for one in reversed(waiting) if isinstance(one, Future) and not one.cancel()])


def _result(one: Future[T] | T) -> T:
    return one.result() if isinstance(one, Future) else one


def keep_memory() -> None:
    """Have this process use the memory of freed blocks again, instead of getting it from the kernel anew, page by page.

    For a command that ends soon: glibc holds back at most twice the largest mapping that was freed, and never less again.
    """
    bytes(31 << 20)  # never touched; 32 MiB is the largest that counts


def workers() -> ThreadPoolExecutor:
    """Return threads that pack and unpack."""
    return ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="blocks")
