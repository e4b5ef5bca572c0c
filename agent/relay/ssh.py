"""A place behind SSH: its files by SFTP, over one connection that is kept.

The host's key is always verified, against known_hosts; there is no way around it. Who asks is known by a key: of the SSH agent, of a file
that the settings name, or the user's usual ones. Passwords are never asked for, and never sent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import posixpath
import stat
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from .place import (
    IN,
    REASON_LIMIT,
    RECEIPT_LIMIT,
    RECEIPTS,
    REFUSED,
    SIGNATURE_LIMIT,
    PlaceRefused,
    PlaceUnreachable,
    Refusal,
    SshAddress,
    is_bundle_name,
    parse_reason,
    reason_name,
)

if TYPE_CHECKING:
    import asyncssh

T = TypeVar("T")
_CONNECT, _SILENCE = 30.0, 120.0  # seconds: to get in, for one answer
_ALIVE = 15.0  # seconds between questions whether the other end lives; four without an answer end the connection
_CHUNK, _PIECE = 1 << 20, 16 << 10  # bytes on their way at a time; of one request, where the server does not say more
_SETTLED = 3.0  # seconds: SFTP tells times in whole seconds, so a file may change without a new one


class _Quiet(logging.Filter):
    """A connection that is cut is said once, in words: not by asyncio for each packet that was to go."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.msg != "socket.send() raised exception."


_quiet = _Quiet()


class SshPlace:
    """The sending side of a place behind SSH. `put` goes on where the connection broke off."""

    staging: str | None = None

    def __init__(self, text: str, address: SshAddress, ssh_key: str | None, known_hosts: str | None) -> None:
        self.name, self._address, self._ssh_key = text, address, ssh_key
        self._known_hosts = known_hosts or os.path.join(os.path.expanduser("~"), ".ssh", "known_hosts")
        self._connection: asyncssh.SSHClientConnection | None = None
        self._sftp: asyncssh.SFTPClient | None = None
        self.moved = 0
        self._sent: dict[tuple[str, str], int] = {}  # (bundle, file) -> bytes that were acknowledged, in order
        self._stamps: dict[str, tuple[tuple[object, ...], float]] = {}  # receipt -> (size, time, ...), when these were first seen

    async def waiting(self, prefix: str) -> list[str]:
        """See Place."""

        async def look(sftp: asyncssh.SFTPClient) -> list[str]:
            names = [str(name) for name in await sftp.listdir(self._path(IN))]
            return sorted(name for name in names if is_bundle_name(name) and name.startswith(prefix))

        return await self._do(look)

    async def receipt(self, origin: str) -> tuple[bytes, bytes | None] | None:
        """See Place."""
        path = self._path(RECEIPTS, f"{origin}.receipt")

        async def fetch(sftp: asyncssh.SFTPClient) -> tuple[bytes, bytes | None] | None:
            import asyncssh

            try:
                found = await sftp.lstat(path)
            except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
                return None
            now, stamp = time.monotonic(), (found.size, found.mtime, found.mtime_ns)
            known = self._stamps.get(path)
            if known is not None and known[0] == stamp and known[1] < 0:
                return None
            document = await self._read(sftp, path, RECEIPT_LIMIT)
            if document is None:
                return None
            signature = await self._read(sftp, f"{path}.sig", SIGNATURE_LIMIT)
            if known is None or known[0] != stamp:
                self._stamps[path] = stamp, now
            elif now - known[1] > _SETTLED:
                self._stamps[path] = stamp, -1.0  # it was this one a while ago already: no other one hides behind its time
            return document, signature

        return await self._do(fetch)

    async def refusal(self, name: str) -> Refusal | None:
        """See Place."""

        async def fetch(sftp: asyncssh.SFTPClient) -> Refusal | None:
            data = await self._read(sftp, self._path(REFUSED, reason_name(name)), REASON_LIMIT)
            return None if data is None else parse_reason(data)

        return await self._do(fetch)

    async def put(self, path: str) -> None:
        """See Place."""
        import asyncssh

        name = os.path.basename(path)
        part, whole = self._path(IN, f".{name}.part"), self._path(IN, name)

        async def bring(sftp: asyncssh.SFTPClient) -> None:
            if await sftp.exists(whole):  # its answer was lost
                return
            if not await sftp.isdir(part):
                self._forget(name)
                await sftp.mkdir(part, _attrs(0o700))
            try:
                for file in sorted(await asyncio.to_thread(os.listdir, path), reverse=True):  # the volumes first, the manifest last
                    await self._bring(sftp, name, os.path.join(path, file), posixpath.join(part, file))
                await self._answer(sftp.posix_rename(part, whole))
            except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):  # somebody swept it: from the beginning
                self._forget(name)
                raise

        await self._do(bring, patience=None)
        self._forget(name)

    def forget(self) -> None:
        """See Place."""
        self._stamps.clear()

    async def close(self) -> None:
        """See Place."""
        connection, self._connection, self._sftp = self._connection, None, None
        if connection is not None:
            connection.abort()
            with suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(connection.wait_closed(), 5.0)

    # ------------------------------------------------------------------ files

    async def _bring(self, sftp: asyncssh.SFTPClient, bundle: str, source: str, target: str) -> None:
        key = bundle, os.path.basename(source)
        at = self._sent.get(key, 0)
        size = os.stat(source).st_size
        if key in self._sent and at == size:
            return
        with open(source, "rb") as file:  # noqa: ASYNC230 - read piece by piece, from the page cache
            async with sftp.open(target, "r+b" if at else "wb", block_size=0) as there:  # pieces are cut here
                while True:
                    data = await asyncio.to_thread(os.pread, file.fileno(), _CHUNK, at)
                    if not data:
                        break
                    await self._write(sftp, there, data, at)
                    at += len(data)
                    self._sent[key] = at
                    self.moved += len(data)
                with suppress(Exception):  # not every server can; a bundle that is lost is sent again
                    await self._answer(there.fsync())
        self._sent[key] = at

    async def _write(self, sftp: asyncssh.SFTPClient, there: asyncssh.SFTPClientFile, data: bytes, at: int) -> None:
        """Write pieces that are one request each, side by side; when it returns, all of them were acknowledged."""
        piece = min(sftp.limits.max_write_len or _PIECE, _CHUNK)
        calls = [there.write(data[i : i + piece], at + i) for i in range(0, len(data), piece)]
        for done in await self._answer(asyncio.gather(*calls, return_exceptions=True)):
            if isinstance(done, BaseException):
                raise done

    async def _read(self, sftp: asyncssh.SFTPClient, path: str, limit: int) -> bytes | None:
        import asyncssh

        try:
            found = await self._answer(sftp.lstat(path))
        except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
            return None
        if found.size is None or found.size > limit or not stat.S_ISREG(found.permissions or 0):
            raise PlaceRefused(f"{self.name}: {posixpath.basename(path)} there is no file, or larger than any that simspool makes")
        async with sftp.open(path, "rb") as file:
            data: object = await self._answer(file.read(limit))
        assert isinstance(data, bytes)
        return data

    def _forget(self, bundle: str) -> None:
        for key in [key for key in self._sent if key[0] == bundle]:
            del self._sent[key]

    def _path(self, *parts: str) -> str:
        return posixpath.join(self._address.path, *parts)

    @staticmethod
    async def _answer(call: Awaitable[T]) -> T:
        async with asyncio.timeout(_SILENCE):
            return await call

    # ------------------------------------------------------------------ the connection

    async def _do(self, work: Callable[[asyncssh.SFTPClient], Awaitable[T]], *, patience: float | None = _SILENCE) -> T:
        """Do something with the connection, and turn what can go wrong into words."""
        import asyncssh

        try:
            sftp = await self._connected()
            async with asyncio.timeout(patience):
                return await work(sftp)
        except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection, asyncssh.DisconnectError, OSError, TimeoutError) as error:
            await self.close()
            raise PlaceUnreachable(f"{self.name}: {_words(error)}") from None
        except asyncssh.SFTPPermissionDenied as error:
            raise PlaceRefused(f"{self.name}: {_words(error)}: the folder there must be this user's to write") from None
        except asyncssh.SFTPError as error:
            raise PlaceUnreachable(f"{self.name}: {_words(error)}") from None
        except (asyncssh.Error, ValueError) as error:
            await self.close()
            raise PlaceUnreachable(f"{self.name}: {_words(error)}") from None
        except asyncio.CancelledError:
            await self.close()
            raise

    async def _connected(self) -> asyncssh.SFTPClient:
        if self._sftp is not None and self._connection is not None and not self._connection.is_closed():
            return self._sftp
        await self.close()
        try:
            async with asyncio.timeout(_CONNECT):
                return await self._connect()
        except TimeoutError:
            raise PlaceUnreachable(f"{self.name}: {self._address.host} does not answer") from None

    async def _connect(self) -> asyncssh.SFTPClient:
        import asyncssh

        logging.getLogger("asyncio").addFilter(_quiet)  # again is the same
        address = self._address
        options: dict[str, Any] = {} if address.port is None else {"port": address.port}
        options |= {} if address.user is None else {"username": address.user}
        options |= {} if self._ssh_key is None else {"client_keys": [_usable(self._ssh_key)]}
        hosts = self._known_hosts
        if not await asyncio.to_thread(os.path.isfile, hosts):
            raise PlaceRefused(f"{self.name}: there is no {hosts}: {self._how_to_know()}")
        try:
            # known_hosts is always given: asyncssh verifies nothing where it is None, and a user's ssh_config may say so
            connection = await asyncssh.connect(
                address.host, known_hosts=hosts, password=None, preferred_auth=["publickey"], keepalive_interval=_ALIVE,
                keepalive_count_max=4, connect_timeout=_CONNECT, login_timeout=_CONNECT, **options,
            )  # fmt: skip
        except asyncssh.HostKeyNotVerifiable:
            raise PlaceRefused(f"{self.name}: the key of {address.host} is not the one in {hosts}: {self._how_to_know()}") from None
        except asyncssh.PermissionDenied:
            what = f"does not let the key {self._ssh_key} in" if self._ssh_key else "takes no key of this user's (--ssh-key names another)"
            raise PlaceRefused(f"{self.name}: {address.host} {what}: add it to authorized_keys there") from None
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            what = f"the key {self._ssh_key} cannot be used ({error}): one without a passphrase is needed"
            raise PlaceRefused(f"{self.name}: {what}") from None
        self._connection = connection
        self._sftp = sftp = await connection.start_sftp_client()
        root = address.path
        if not await sftp.isdir(root):
            raise PlaceRefused(f"{self.name}: there is no folder {root} on {address.host}: make it there")
        for name in (IN, RECEIPTS, REFUSED):
            with suppress(asyncssh.SFTPFailure, asyncssh.SFTPFileAlreadyExists):  # it is there
                await sftp.mkdir(self._path(name), _attrs(0o700))
        return sftp

    def _how_to_know(self) -> str:
        port = f" -p {self._address.port}" if self._address.port else ""
        return f"compare it with what its administrators say (`ssh-keyscan{port} {self._address.host}`), and add it there"


def _usable(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise PlaceRefused(f"cannot read the key {path}: {error.strerror}") from None
    if mode & 0o077:
        raise PlaceRefused(f"others may read the key {path}: run `chmod 600 {path}` first")
    return path


def _attrs(mode: int) -> asyncssh.SFTPAttrs:
    import asyncssh

    return asyncssh.SFTPAttrs(permissions=mode)


def _words(error: BaseException) -> str:
    text = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return str(text) or "it does not answer"
