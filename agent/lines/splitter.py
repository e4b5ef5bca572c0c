"""Bytes in, whole lines out."""

from __future__ import annotations

DEFAULT_LIMIT = 1 << 20


class Lines:
    r"""Cuts a stream of bytes into lines that end with "\n". How the stream is cut into pushes makes no difference.

    "\n", "\r\n" and "\r" (a progress bar) end a line. A line longer than `limit` bytes is cut to its first `limit` bytes and
    counted in `cut`; so at most `limit` bytes are kept between two pushes.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        if limit < 1:
            raise ValueError(f"a line must be allowed at least 1 byte, not {limit}")
        self.limit = limit
        self.cut = 0  # lines that were longer than the limit
        self._rest = bytearray()
        self._after_return = False  # the last byte was "\r", and its line was given: a "\n" that follows belongs to it
        self._overlong = False  # the rest is full, and what comes up to the line's end is let go

    @property
    def pending(self) -> int:
        """Bytes of a line that has no end yet."""
        return len(self._rest)

    def push(self, data: bytes) -> bytes:
        r"""Take the next bytes; return the lines that are complete now, each ending with "\n", as one block (may be empty)."""
        if not data:
            return b""
        if self._after_return and data[0] == 0x0A:
            data = data[1:]
        self._after_return = data.endswith(b"\r") or (self._after_return and not data)
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = data.rfind(b"\n") + 1
        if not end:
            self._keep(data)
            return b""
        begin = 0
        if self._overlong:
            begin, self._overlong = data.index(b"\n"), False
        block = b"".join((self._rest, memoryview(data)[begin:end]))
        self._rest.clear()
        self._keep(data[end:])
        return block if len(block) <= self.limit else self._bounded(block)

    def flush(self) -> bytes:
        r"""Return the rest, ended by "\n", or nothing: the stream has ended, or another one begins."""
        rest = bytes(self._rest)
        self._rest.clear()
        self._after_return = self._overlong = False
        return rest + b"\n" if rest else b""

    def _keep(self, data: bytes) -> None:
        if self._overlong:
            return
        self._rest += data[: self.limit - len(self._rest) + 1]
        if len(self._rest) > self.limit:
            del self._rest[self.limit :]
            self._overlong = True
            self.cut += 1

    def _bounded(self, block: bytes) -> bytes:
        """Cut the lines that are longer than the limit."""
        kept, begin, at, limit = [], 0, 0, self.limit
        while len(block) - at > limit + 1:
            newline = block.rfind(b"\n", at, at + limit + 1)
            if newline < 0:
                kept.append(block[begin : at + limit])
                newline = begin = block.index(b"\n", at + limit)
                self.cut += 1
            at = newline + 1
        kept.append(block[begin:])
        return b"".join(kept)
