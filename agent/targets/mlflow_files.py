"""Files among a run's artifacts: where each goes, and sending it, in parallel parts where the server's store has those."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any, BinaryIO

from .http import FileBody
from .mlflow_api import Api, Rejected, RunThere
from .mlflow_runs import Entry, Runs
from .mlflow_words import own_path, path_there
from .port import File, TooLarge, Unreachable

_COMPARED = 8 << 20  # bytes: a larger file of unknown origin is not read back, but sent to a place of its own
_IN_PARTS, _PART, _MOST_PARTS, _AT_ONCE = 64 << 20, 16 << 20, 200, 4


class Files:
    """Sends files of one experiment's runs.

    A file goes to `<category>/<name>`. Who was there first is noted before a byte is sent; another record of that name goes to a place of
    its own, and so does one that meets a file of unknown origin. So no file is ever replaced by another one.
    """

    def __init__(self, api: Api, runs: Runs) -> None:
        self._api, self._runs = api, runs
        self._in_parts = True

    def forget(self) -> None:
        """Know nothing of the server any more."""
        self._in_parts = True

    async def missing(self, files: Sequence[File]) -> list[str]:
        """Return the keys of files that are not there with their size."""
        by_run: dict[str, list[File]] = {}
        for file in files:
            by_run.setdefault(file.run, []).append(file)
        gone: list[str] = []
        for run, some in by_run.items():
            there = await self._runs.find(self._runs.entry(run))
            if there is None or there.files is None:
                gone += [f.key for f in some]
                continue
            noted = await self._runs.memory.recall([_claim(run, path_there(f.category, f.name)) for f in some])
            folders: dict[str, dict[str, int | None]] = {}
            for file in some:
                where = path_there(file.category, file.name)
                if noted.get(_claim(run, where)) != file.key:
                    where = own_path(file.writer, file.seq, file.name)
                folder, _, name = where.rpartition("/")
                if folder not in folders:
                    folders[folder] = await self._api.listed(f"{there.files}/{folder}")
                if folders[folder].get(name, -1) != file.size:
                    gone.append(file.key)
        return gone

    async def put(self, file: File, path: str) -> str | None:
        """Send a file's bytes; None when they are there, else the reason why they never will be. Raises OSError for an unreadable one."""
        entry = self._runs.entry(file.run)
        try:
            there = await self._runs.ensure(entry)
            if there.deleted:
                return "its run was deleted in MLflow"
            if there.files is None:
                return "the server serves no artifacts: start it with --serve-artifacts"
            where = await self._place(entry, there, file)
            return None if where is None else await self._send(file, path, f"{there.files}/{where}")
        except Rejected as error:
            return f"the server says {error.status}: {error}"
        except TooLarge:
            return f"the server's limit is below its {file.size} bytes"

    async def _place(self, entry: Entry, there: RunThere, file: File) -> str | None:
        """Return where a file is to be put; None when it is there already."""
        where = path_there(file.category, file.name)
        own = own_path(file.writer, file.seq, file.name)
        parts = where.split("/")
        above = ["/".join(parts[:n]) for n in range(1, len(parts))]
        claims = {path: _claim(entry.run, path) for path in (where, *above)}
        async with entry.naming:  # two files of one name may be sent at once
            noted = await self._runs.memory.recall(list(claims.values()))
            known = noted.get(claims[where])
            if known is not None:
                return where if known == file.key else own
            if any(claims[path] in noted for path in above):
                return own  # a file lies where its folder would be
            folder, _, name = where.rpartition("/")
            listed = await self._api.listed(f"{there.files}/{folder}")
            if name in listed and (listed[name] != file.size or not await self._is_same(f"{there.files}/{where}", file)):
                return own
            await self._runs.memory.note({claims[where]: file.key})
            return None if name in listed else where

    async def _is_same(self, where: str, file: File) -> bool:
        if file.size > _COMPARED:
            return False
        data = await self._api.get(where)
        return data is not None and hashlib.sha256(data).hexdigest() == file.digest

    async def _send(self, file: File, path: str, where: str) -> str | None:
        with open(path, "rb") as source:  # noqa: ASYNC230 - blocks are read in a thread
            size = os.fstat(source.fileno()).st_size
            if size >= _IN_PARTS and self._in_parts:
                try:
                    reason = await _Parts(self._api, self._runs, file, where, source, size).send()
                except Rejected as error:
                    if error.status != 501:
                        raise
                    self._in_parts = False
                else:
                    return reason or await self._settled(where, size)
            body = FileBody(source, size)
            try:
                await self._api.put(where, body, bulk=True)
            except Unreachable:
                if body.broken:  # not the server's fault: the others go on
                    return body.broken
                raise
        return await self._settled(where, size)

    async def _settled(self, where: str, size: int) -> str | None:
        folder, _, name = where.rpartition("/")
        found = (await self._api.listed(folder)).get(name)
        if found != size:
            raise Unreachable(f"{self._api.url} has {found} of {size} bytes of {where}")
        return None


class _Parts:
    """One file's upload in parts, straight to the store that signed for them. What is there is noted part by part: a new try goes on."""

    def __init__(self, api: Api, runs: Runs, file: File, where: str, source: BinaryIO, size: int) -> None:
        self._api, self._runs, self._where, self._source, self._size = api, runs, where, source, size
        self._key = f"{file.run}/mlflow.parts/{file.key}"
        self._part = max(_PART, -(-size // _MOST_PARTS))
        self._count = -(-size // self._part)

    async def send(self) -> str | None:
        """Send what is missing, and have the parts put together. Raises Rejected with 501 where the store knows no parts."""
        upload, signed, etags = await self._begin()
        missing = [n for n in range(1, self._count + 1) if n not in etags]
        gate = asyncio.Semaphore(_AT_ONCE)
        broken: list[str] = []

        async def one(number: int) -> None:
            async with gate:
                start = (number - 1) * self._part
                body = FileBody(self._source, min(self._part, self._size - start), start)
                try:
                    status, etag = await self._api.put_part(signed[number]["url"], signed[number].get("headers") or {}, body)
                except Unreachable:
                    if body.broken:
                        broken.append(body.broken)
                    raise
                if status not in {200, 201} or not etag:  # the signature is too old, or the upload was given up there
                    await self._give_up(upload)
                    raise Unreachable(f"the store of {self._api.url} answers {status} to part {number} of {self._where}: it begins anew")
                etags[number] = etag
                await self._runs.memory.note({f"{self._key}/{upload}/{number}": etag})

        try:
            async with asyncio.TaskGroup() as group:
                for number in missing:
                    group.create_task(one(number))
        except BaseExceptionGroup as errors:
            if broken:
                return broken[0]
            raise errors.exceptions[0] from None
        parts = [{"part_number": n, "etag": etags[n], "url": signed[n]["url"]} for n in sorted(etags)]
        try:
            await self._api.multipart("complete", self._where, {"upload_id": upload, "parts": parts})
        except Rejected as error:
            await self._give_up(upload)
            raise Unreachable(f"{self._api.url} does not put the parts of {self._where} together: {error}") from None
        await self._runs.memory.note({self._key: ""})
        return None

    async def _give_up(self, upload: str) -> None:
        """Have the store throw away what it has of the parts; the next try begins anew."""
        await self._runs.memory.note({self._key: ""})
        with contextlib.suppress(Rejected):
            await self._api.multipart("abort", self._where, {"upload_id": upload})

    async def _begin(self) -> tuple[str, dict[int, dict[str, Any]], dict[int, str]]:
        """Return the upload's id, what is signed by number, and the ETags of parts that are there: of an earlier try, or a new one."""
        memory = self._runs.memory
        noted = (await memory.recall([self._key])).get(self._key)
        if noted:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                value = json.loads(noted)
                if value["part"] == self._part and value["size"] == self._size and value["where"] == self._where:
                    keys = {f"{self._key}/{value['upload']}/{n}": n for n in range(1, self._count + 1)}
                    done = await memory.recall(list(keys))
                    return value["upload"], {int(n): one for n, one in value["signed"].items()}, {keys[k]: etag for k, etag in done.items()}
        made = await self._api.multipart("create", self._where, {"num_parts": self._count})
        try:
            upload = str(made["upload_id"])
            signed = {n: {"url": c["url"], "headers": c.get("headers") or {}} for n, c in enumerate(made["credentials"], 1)}
        except (KeyError, TypeError):
            raise Unreachable(f"{self._api.url} answers an upload in parts that makes no sense") from None
        if len(signed) != self._count:
            raise Unreachable(f"{self._api.url} signed {len(signed)} of {self._count} parts")
        value = {"upload": upload, "part": self._part, "size": self._size, "where": self._where, "signed": signed}
        await memory.note({self._key: json.dumps(value)})
        return upload, signed, {}


def _claim(run: str, path: str) -> str:
    return f"{run}/mlflow.file/{path}"
