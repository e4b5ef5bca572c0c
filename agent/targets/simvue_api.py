"""Simvue's REST dialect, as far as a drain needs it. Needs no simvue package."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import msgpack

from simspool.sdk.way import Way

from .http import ANSWER_LIMIT, Answer, Body, FileBody, HttpCaller, plain_text
from .pace import Pace
from .port import Foreign, NotNow, TooLarge, Unreachable
from .simvue_books import RUN
from .simvue_words import Item

_ADVICE = "put another token into SIMSPOOL_TOKEN or the target's token_file"
_LEVELS_SINCE = (1, 2, 16)
_EXPECTED = (200, 201, 204, 400, 404, 409, 415, 422)
_LATER = 10.0  # seconds
_PAGE = 100
_FOLDERS = 1000  # that are remembered
_BOUNDARY = "simspool-7f1c52c0c2a84f5e9d3b6b0b4f1f2a63"
Batch = Literal["metrics", "events"]


class Rejected(Exception):
    """Raised when the server calls a request bad: `status` is 400, 404, 415 or 422, `detail` what it says."""

    def __init__(self, status: int, detail: Any) -> None:
        self.status, self.detail = status, detail
        super().__init__(self._said())

    def _said(self) -> str:
        if isinstance(self.detail, list):
            said = [f"{_place(d)}: {d.get('msg')}" for d in self.detail[:5] if isinstance(d, dict)]
            return plain_text("; ".join(said))[:400]
        return plain_text(self.detail or f"it answers {self.status}")[:400]

    def fields(self) -> set[str]:
        """Return the fields of the body that it names."""
        found = self.detail if isinstance(self.detail, list) else []
        locs = [d.get("loc") for d in found if isinstance(d, dict)]
        return {loc[1] for loc in locs if isinstance(loc, list) and len(loc) > 1 and loc[0] == "body" and isinstance(loc[1], str)}

    def named(self, kind: Batch, count: int) -> dict[int, str]:
        """Return the elements of a batch that it names, each with the reason; nothing unless every complaint names one."""
        found: dict[int, str] = {}
        for one in self.detail if isinstance(self.detail, list) else ():
            loc = one.get("loc") if isinstance(one, dict) else None
            if not isinstance(loc, list) or len(loc) < 3 or loc[:2] != ["body", kind] or type(loc[2]) is not int or not 0 <= loc[2] < count:
                return {}
            found.setdefault(loc[2], plain_text(f"{'.'.join(str(p) for p in loc[3:])}: {one.get('msg')}")[:400])
        return found


@dataclass(frozen=True, slots=True)
class RunThere:
    """A run as the server has it. `points` is how many it counts in all its metrics (-1: it does not say); `alerts`: name -> (id, source,
    state or None)."""

    id: str
    status: str | None
    points: int
    counts: Mapping[str, int]
    metadata: Mapping[str, Any]
    alerts: Mapping[str, tuple[str, str, str | None]] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> RunThere:
        """Read a run of an answer. Raises KeyError, TypeError, ValueError or AttributeError for what is none."""
        counts = {str(name): int(one["count"]) for name, one in (value.get("metrics") or {}).items()}
        alerts: dict[str, tuple[str, str, str | None]] = {}
        for one in value.get("alerts") or ():
            inner = one.get("alert") if isinstance(one, dict) else None
            if isinstance(inner, dict) and isinstance(inner.get("id"), str):
                told = one.get("status")
                state = told.get("current") if isinstance(told, dict) else told
                alerts[str(inner.get("name"))] = inner["id"], str(inner.get("source")), state if isinstance(state, str) else None
        status = value.get("status")
        points = sum(counts.values()) if isinstance(value.get("metrics"), dict) else -1
        return cls(
            str(value["id"]), status if isinstance(status, str) else None, points, counts, dict(value.get("metadata") or {}),
            alerts,
        )  # fmt: skip


class Form:
    """A file as the one part `file` of a multipart form, behind the fields that the server gave."""

    def __init__(self, file: FileBody, fields: Mapping[str, Any], name: str) -> None:
        head = b"".join(
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode() for key, value in fields.items()
        )
        plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in name.rpartition("/")[2])[-100:] or "file"
        head += f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{plain}"\r\n'.encode(errors="replace")
        self._head = head + b"Content-Type: application/octet-stream\r\n\r\n"
        self._file, self._tail = file, f"\r\n--{_BOUNDARY}--\r\n".encode()
        self.size = len(self._head) + file.size + len(self._tail)

    @property
    def broken(self) -> str:
        """See Body."""
        return self._file.broken

    @broken.setter
    def broken(self, value: str) -> None:
        self._file.broken = value

    async def blocks(self, block: int) -> AsyncIterator[bytes]:
        """Give out its bytes."""
        yield self._head
        async for data in self._file.blocks(block):
            yield data
        yield self._tail


class Api:
    """One server. Methods raise Unreachable, Refused and TooLarge as HttpCaller does, and Rejected."""

    def __init__(self, url: str, token: str, bandwidth: float | None, timeout: float, way: Way | None = None) -> None:
        pace = Pace(bandwidth) if bandwidth else None
        self._http = HttpCaller(url, {"Authorization": f"Bearer {token}"}, timeout=timeout, pace=pace, advice=_ADVICE, way=way)
        self.url = url
        self.levels = True  # whether events have levels here
        self._folders: dict[str, str] = {}

    async def call(self, method: str, path: str, value: Any = None, params: Mapping[str, str] | None = None) -> Any:
        """Make one request; return the JSON of a good answer."""
        return self._checked(await self._http.call(method, "/api" + path, value=value, params=params, expected=_EXPECTED), path)

    def _checked(self, answer: Answer, path: str) -> Any:
        value = answer.value
        if answer.status < 300 or (answer.status == 409 and isinstance(value, dict) and "id" in value):
            if not isinstance(value, dict | list):
                if len(answer.body) > ANSWER_LIMIT:
                    raise TooLarge(f"{self.url} answers more than {ANSWER_LIMIT} bytes to {path}")
                raise Unreachable(f"{self.url} answers something else than a Simvue server: is it a login page of the network?")
            return value
        if not isinstance(value, dict) or "detail" not in value:
            raise Unreachable(f"{self.url} answers {answer.status}, which no Simvue server says: is the URL right?")
        raise Rejected(answer.status, value["detail"])

    async def _made(self, path: str, value: Any, params: Mapping[str, str] | None = None) -> str:
        found = await self.call("POST", path, value, params)
        if not isinstance(found, dict) or not isinstance(found.get("id"), str):
            raise Unreachable(f"{self.url} gives no id for what it made at {path}")
        return str(found["id"])

    async def connect(self) -> str:
        """Return the server's id: of its address, and of who we are there. Raises Foreign for another kind of server."""
        self._folders.clear()
        answer = await self._http.call("GET", "/api/version", expected=(200, 404, 405))
        value = answer.value
        if answer.status == 200 and value is None:
            raise Unreachable(f"{self.url} answers something else than a Simvue server: is it a login page of the network?")
        version = value.get("version") if answer.status == 200 and isinstance(value, dict) else None
        if not isinstance(version, str):
            raise Foreign(f"{self.url} has no Simvue API: it is not a Simvue server, or is it under another path?")
        numbers = [int(n) if n.isdigit() else 0 for n in version.split("+")[0].split("-")[0].split(".")[:3]]
        self.levels = tuple(numbers) >= _LEVELS_SINCE
        who = await self._http.call("GET", "/api/whoami", expected=(200, 404))
        told = who.value if who.status == 200 and isinstance(who.value, dict) else {}
        host = urlsplit(self.url).netloc.rpartition("@")[2]
        return plain_text(":".join(["simvue", host, _one(told, "tenant"), _one(told, "username")]))[:200]

    # runs
    async def run(self, identity: str) -> RunThere | None:
        """Return a run by its id; None when there is none."""
        try:
            value = await self.call("GET", f"/runs/{identity}")
        except Rejected as error:
            if error.status in {404, 422}:
                return None
            raise Unreachable(f"{self.url} does not show run {identity}: {error}") from None
        try:
            return RunThere.of(value)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise Unreachable(f"{self.url} answers a run that makes no sense") from None

    async def find(self, run: str) -> RunThere | None:
        """Return the run that carries our id among its metadata; of several, the oldest. None without any."""
        query = {"filters": json.dumps([f"metadata.{RUN} == {run}"]), "start": "0", "count": "20"}
        try:
            value = await self.call("GET", "/runs", params=query)
            some = [(str(one.get("created") or ""), str(one["id"])) for one in value["data"]]
        except Rejected as error:
            raise Unreachable(f"{self.url} does not list runs: {error}") from None
        except (KeyError, TypeError, AttributeError):
            raise Unreachable(f"{self.url} answers a list of runs that makes no sense") from None
        for _, identity in sorted(some):
            found = await self.run(identity)
            if found is not None and found.metadata.get(RUN) == run:  # a server may not know the filter
                return found
        return None

    async def create_run(self, body: Mapping[str, Any]) -> tuple[str, bool]:
        """Make a run; return its id, and whether it is another one that was there and has the name."""
        answer = await self._http.call("POST", "/api/runs", value=body, expected=_EXPECTED)
        value = self._checked(answer, "/runs")
        if not isinstance(value, dict) or not isinstance(value.get("id"), str):
            raise Unreachable(f"{self.url} gives no id for a run")
        return value["id"], answer.status == 409

    async def change_run(self, identity: str, body: Mapping[str, Any]) -> None:
        """Change some of a run's fields. Metadata are merged."""
        await self.call("PUT", f"/runs/{identity}", body)

    async def folder(self, path: str, *, fresh: bool = True) -> str:
        """Make a folder, or find it; return its id. Not `fresh`: it is not asked for again if it was there before."""
        if fresh or path not in self._folders:
            if len(self._folders) >= _FOLDERS:
                self._folders.clear()
            self._folders[path] = await self._made("/folders", {"path": path})
        return self._folders[path]

    async def change_folder(self, identity: str, body: Mapping[str, Any]) -> None:
        """Change some of a folder's fields."""
        await self.call("PUT", f"/folders/{identity}", body)

    # points and events
    async def post(self, kind: Batch, run: str, items: Sequence[Item]) -> None:
        """Post a batch: it is taken as a whole, or not at all."""
        packer = msgpack.Packer(autoreset=False)
        packer.pack_map_header(2)
        for text in ("run", run, kind):
            packer.pack(text)
        packer.pack_array_header(len(items))
        body = packer.bytes() + b"".join([item.packed for item in items])
        headers = {"Content-Type": "application/msgpack"}
        self._checked(await self._http.call("POST", f"/api/{kind}", body=body, headers=headers, expected=_EXPECTED), f"/{kind}")

    async def count_events(self, run: str, *, exact: bool) -> int:
        """Return how many events a run has. Where the server does not say, they are read and counted; -1 unless `exact`."""
        start = 0
        while True:
            value = await self.call("GET", "/events", params={"run": run, "start": str(start), "count": str(_PAGE)})
            count, data = (value.get("count"), value.get("data")) if isinstance(value, dict) else (None, None)
            if type(count) is int and count >= 0:
                return count
            if not isinstance(data, list):
                raise Unreachable(f"{self.url} answers a list of events that makes no sense")
            if not exact:
                return -1
            start += len(data)
            if len(data) < _PAGE:
                return start

    async def points(self, run: str, metric: str) -> list[tuple[int, float]]:
        """Return (step, value) of all points of a metric. Raises TooLarge for what is over the limit of an answer."""
        query = {"runs": json.dumps([run]), "metrics": json.dumps([metric]), "xaxis": "step"}
        value = await self.call("GET", "/metrics", params=query)
        try:
            return [(int(one["step"]), float(one["value"])) for one in (value.get(run) or {}).get(metric) or ()]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise Unreachable(f"{self.url} answers points that make no sense") from None

    # alerts
    async def alert(self, body: Mapping[str, Any]) -> str:
        """Make an alert, or find the one that is equal; return its id."""
        return await self._made("/alerts", body, {"deduplicate": "True"})

    async def set_alert(self, alert: str, run: str, state: str) -> None:
        """Set a user alert's state in a run."""
        await self.call("PUT", f"/alerts/{alert}/status/{run}", {"status": state})

    # files
    async def artifacts(self, run: str) -> list[Mapping[str, Any]]:
        """Return the files of a run."""
        try:
            value = await self.call("GET", f"/runs/{run}/artifacts")
        except Rejected as error:
            if error.status == 404:
                return []
            raise
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise Unreachable(f"{self.url} answers a list of files that makes no sense")
        return value

    async def announce(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Say that a file comes; return the answer, with `id`, and `url` where its bytes are wanted."""
        value = await self.call("POST", "/artifacts", body)
        if not isinstance(value, dict) or not isinstance(value.get("id"), str):
            raise Unreachable(f"{self.url} gives no id for a file")
        return value

    async def upload(self, url: str, fields: Mapping[str, Any] | None, file: FileBody, name: str) -> str | None:
        """Send a file's bytes to the address that the server gave; None when they are there, else the reason. Raises NotNow."""
        if not url.startswith(("http://", "https://")):
            raise Unreachable(f"{self.url} gives an address for a file that is none")
        body: Body = Form(file, fields, name) if fields else file
        kind = f"multipart/form-data; boundary={_BOUNDARY}" if fields else "application/octet-stream"
        expected = (200, 201, 204, 400, 401, 403, 404, 405, 507)
        try:
            answer = await self._http.call(
                "POST" if fields else "PUT", url, body=body, headers={"Content-Type": kind}, expected=expected, bulk=True
            )
        except Unreachable:
            if file.broken:  # not the server's fault: the others go on
                return file.broken
            raise
        if answer.status < 300:
            return None
        said = plain_text(answer.body[:300].decode(errors="replace"))
        if answer.status in {401, 403, 404, 405, 507}:
            raise NotNow(f"the storage of {self.url} says {answer.status} to {name}: {said}", _LATER)
        return f"the storage says {answer.status} (as 422: the bytes are not what was announced): {said}"

    async def uploaded(self, artifact: str) -> None:
        """Say that a file's bytes are there."""
        await self.call("PUT", f"/artifacts/{artifact}", {"uploaded": True})

    async def attach(self, run: str, artifact: str, category: str) -> None:
        """Give a file to a run."""
        await self.call("PUT", f"/runs/{run}/artifacts/{artifact}", {"category": category})

    # live runs
    async def beat(self, run: str) -> bool:
        """Say that a run lives; return whether its abort flag is up."""
        await self.call("PUT", f"/runs/{run}/heartbeat")
        value = await self.call("GET", f"/runs/{run}/abort")
        return isinstance(value, dict) and value.get("status") is True

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.close()


def _place(complaint: Mapping[str, Any]) -> str:
    found = complaint.get("loc")
    return ".".join(str(part) for part in found) if isinstance(found, list) else str(found)


def _one(told: Mapping[str, Any], key: str) -> str:
    value = told.get(key)
    if isinstance(value, dict):
        value = value.get("name") or value.get("id")
    return "" if value is None else str(value)
