"""MLflow's REST API (2.0), as far as a drain needs it. Speaks to a server of 2.x or 3.x; needs no mlflow package."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from simspool.sdk.way import Way

from .http import Answer, FileBody, HttpCaller, plain_text
from .pace import Pace
from .port import Foreign, Refused, Unreachable

_API, _FILES = "/api/2.0/mlflow", "/api/2.0/mlflow-artifacts"
_ADVICE = "put a token, or user:password, into the target's token_file"
_OWN_ID = "simspool.target"
_PAGE = 10_000
_FILES_TIMEOUT = 900.0  # seconds for one block or answer: a server that keeps its files in S3 sends them on before it answers


class Rejected(Exception):
    """Raised when MLflow calls a request bad: `code` is its word for why, `status` HTTP's."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code

    @property
    def is_gone(self) -> bool:
        """Whether what was asked for is not there."""
        return self.code == "RESOURCE_DOES_NOT_EXIST"


@dataclass(slots=True)
class RunThere:
    """A run as MLflow has it. `files` is where its artifacts are on the server's proxy, None where it has none."""

    id: str
    experiment: str
    files: str | None
    name: str
    status: str
    end: int | None
    deleted: bool
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, value: Any) -> RunThere:
        """Read a run of an answer. Raises KeyError, TypeError or ValueError for what is none."""
        info, data = value["info"], value.get("data") or {}
        uri = str(info.get("artifact_uri") or "")
        end = info.get("end_time")
        return cls(
            str(info["run_id"]), str(info["experiment_id"]), _proxied(uri), str(info.get("run_name") or ""), str(info["status"]),
            int(end) if end else None, info.get("lifecycle_stage") == "deleted",
            {str(p["key"]): str(p.get("value", "")) for p in data.get("params", ())},
            {str(t["key"]): str(t.get("value", "")) for t in data.get("tags", ())},
            [str(m["key"]) for m in data.get("metrics", ())],
        )  # fmt: skip


def _proxied(uri: str) -> str | None:
    scheme, _, rest = uri.partition(":")
    if scheme != "mlflow-artifacts":
        return None
    if rest.startswith("//"):
        rest = "/" + rest[2:].partition("/")[2]
    return rest.strip("/")


class Api:
    """One server and one experiment. Methods raise Unreachable, Refused and TooLarge as HttpCaller does, and Rejected."""

    def __init__(self, url: str, experiment: str, token: str | None, bandwidth: float | None, way: Way | None = None) -> None:
        headers = {}
        if token:
            basic = base64.b64encode(token.encode()).decode()
            headers["Authorization"] = f"Basic {basic}" if ":" in token else f"Bearer {token}"
        pace = Pace(bandwidth) if bandwidth else None
        self._http = HttpCaller(url, headers, pace=pace, advice=_ADVICE, way=way)
        self._bulk = HttpCaller(url, headers, timeout=_FILES_TIMEOUT, pace=pace, advice=_ADVICE, way=way)
        self.url, self._name = url, experiment
        self.experiment = ""
        self._experiments = asyncio.Lock()

    @property
    def quickest(self) -> float:
        """The shortest time (s) that the server took to answer: how far away it is, at most."""
        return self._http.quickest

    async def _call(self, method: str, path: str, value: Any = None, params: Mapping[str, str] | None = None) -> Any:
        answer = await self._http.call(method, path, value=value, params=params, expected=(200, 400, 404, 409, 422, 501))
        return self._checked(answer)

    def _checked(self, answer: Answer) -> Any:
        value = answer.value
        if answer.status == 200:
            if not isinstance(value, dict):
                raise Unreachable(f"{self.url} answers something else than an MLflow server: is it a login page of the network?")
            return value
        if not isinstance(value, dict) or "error_code" not in value:
            if answer.status == 501:
                raise Rejected(501, "NOT_IMPLEMENTED", "not implemented")
            raise Unreachable(f"{self.url} answers {answer.status}: is the URL right?")
        raise Rejected(answer.status, str(value["error_code"]), plain_text(value.get("message"))[:500])

    async def connect(self) -> str:
        """Find or make the experiment; return the id that it carries: another database has another one.

        An experiment that was deleted is restored: what is drained to must not be in the bin. Raises Foreign for another kind of server.
        """
        answer = await self._http.call("GET", "/version", expected=(200, 404))
        path, query = f"{_API}/experiments/get-by-name", {"experiment_name": self._name}
        found = await self._http.call("GET", path, params=query, expected=(200, 400, 404, 405))
        if found.status != 200 and not (isinstance(found.value, dict) and "error_code" in found.value):
            raise Foreign(f"{self.url} has no MLflow tracking API: it is not an MLflow server, or is it under another path?")
        version = answer.body[:40].decode(errors="replace") if answer.status == 200 else "unknown"
        async with self._experiments:
            try:
                value = self._experiment(self._checked(found))
            except Rejected as error:
                if not error.is_gone:
                    raise Refused(f"{self.url} does not tell of experiment {self._name!r} (MLflow {version}): {error}") from None
                value = await self._create(path, query)
            if value.get("lifecycle_stage") == "deleted":
                await self._call("POST", f"{_API}/experiments/restore", {"experiment_id": value["experiment_id"]})
            own = value["tags"].get(_OWN_ID)
            if own is None:
                tag = {"experiment_id": value["experiment_id"], "key": _OWN_ID, "value": secrets.token_hex(16)}
                await self._call("POST", f"{_API}/experiments/set-experiment-tag", tag)
                value = self._experiment(await self._call("GET", path, params=query))
                own = value["tags"].get(_OWN_ID)
        if not own:
            raise Unreachable(f"{self.url} does not keep the tag of experiment {self._name!r}")
        self.experiment = str(value["experiment_id"])
        return str(own)

    async def _create(self, path: str, query: Mapping[str, str]) -> Any:
        try:
            tags = [{"key": _OWN_ID, "value": secrets.token_hex(16)}]
            await self._call("POST", f"{_API}/experiments/create", {"name": self._name, "tags": tags})
        except Rejected as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":  # somebody else was first
                raise Refused(f"{self.url} does not make experiment {self._name!r}: {error}") from None
        return self._experiment(await self._call("GET", path, params=query))

    def _experiment(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        with self.sensible("an experiment"):
            found = answer["experiment"]
            return {"experiment_id": str(found["experiment_id"]), "lifecycle_stage": found.get("lifecycle_stage"), "tags": _tags(found)}

    async def run(self, id_there: str) -> RunThere | None:
        """Return a run by its id there; None when there is none."""
        try:
            value = await self._call("GET", f"{_API}/runs/get", params={"run_id": id_there})
        except Rejected as error:
            if error.is_gone or error.code == "INVALID_PARAMETER_VALUE":
                return None
            raise
        return self._read(value.get("run"))

    async def find(self, key: str, value: str) -> RunThere | None:
        """Return the run of our experiment with this tag, one in the bin only where there is no other; None without any."""
        body = {
            "experiment_ids": [self.experiment], "filter": f"tags.`{key}` = '{value}'", "run_view_type": "ALL", "max_results": 20,
        }  # fmt: skip
        answer = await self._call("POST", f"{_API}/runs/search", body)
        with self.sensible("a list of runs"):
            listed = list(answer.get("runs", ()))
        found = [self._read(one) for one in listed]
        found.sort(key=lambda run: (run.deleted, -len(run.tags), run.id))
        return found[0] if found else None

    async def create(self, name: str, start: int, tags: Mapping[str, str]) -> RunThere:
        """Make a run that began at `start` (ms)."""
        body: dict[str, Any] = {"experiment_id": self.experiment, "start_time": start, "tags": _pairs(tags)}
        if name:
            body["run_name"] = name
        return self._read((await self._call("POST", f"{_API}/runs/create", body)).get("run"))

    def _read(self, value: Any) -> RunThere:
        with self.sensible("a run"):
            return RunThere.of(value)

    @contextlib.contextmanager
    def sensible(self, what: str) -> Iterator[None]:
        """For the reading of an answer: one that is not as MLflow's are counts as none."""
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):
            raise Unreachable(f"{self.url} answers {what} that makes no sense") from None

    async def log(self, run: str, body: bytes) -> None:
        """Send a batch; `body` is its JSON without the braces and the run's id."""
        data = b'{"run_id":' + json.dumps(run).encode() + b"," + body + b"}"
        path, kind = f"{_API}/runs/log-batch", {"Content-Type": "application/json"}
        self._checked(await self._http.call("POST", path, body=data, headers=kind, expected=(200, 400, 404, 409, 422)))

    async def update(self, run: str, status: str, end: int | None, name: str) -> None:
        """Set a run's status, when it ended (ms) and its name."""
        body: dict[str, Any] = {"run_id": run, "status": status}
        if end is not None:
            body["end_time"] = end
        if name:
            body["run_name"] = name
        await self._call("POST", f"{_API}/runs/update", body)

    async def forget_tag(self, run: str, key: str) -> None:
        """Take a tag away; harmless when it is not there."""
        try:
            await self._call("POST", f"{_API}/runs/delete-tag", {"run_id": run, "key": key})
        except Rejected as error:
            if not error.is_gone:
                raise

    async def history(self, run: str, metric: str) -> tuple[int, tuple[int, float], tuple[int, float]]:
        """Count a metric's points; return the first and the last (step, value), in order of time, as well."""
        count, token = 0, ""
        first = last = (0, 0.0)
        while True:
            query = {"run_id": run, "metric_key": metric, "max_results": str(_PAGE)} | ({"page_token": token} if token else {})
            page = await self._call("GET", f"{_API}/metrics/get-history", params=query)
            with self.sensible("points"):
                points = list(page.get("metrics", ()))
                if points:
                    ends = [(int(p.get("step", 0)), float(p.get("value", 0.0))) for p in (points[0], points[-1])]
                    first, last = (first if count else ends[0]), ends[1]
                count += len(points)
                before, token = token, str(page.get("next_page_token") or "")
                if token and token == before:
                    raise ValueError("the same page for ever")
            if not token or not points:
                return count, first, last

    # --- files

    async def listed(self, folder: str) -> dict[str, int | None]:
        """Return name -> size of what lies in a folder of the server's files; None for a folder."""
        try:
            value = await self._call("GET", f"{_FILES}/artifacts", params={"path": folder})
        except Rejected as error:
            if error.is_gone:
                return {}
            raise
        with self.sensible("a list of files"):
            return {str(f["path"]): None if f.get("is_dir") else int(f.get("file_size", 0)) for f in value.get("files", ())}

    async def put(self, path: str, body: bytes | FileBody, *, bulk: bool = False) -> None:
        """Write a file; one that is there is replaced."""
        caller = self._bulk if bulk else self._http
        answer = await caller.call("PUT", f"{_FILES}/artifacts/{quote(path)}", body=body, bulk=bulk, expected=(200, 400, 404, 409, 422))
        if answer.status != 200:
            self._checked(answer)

    async def get(self, path: str) -> bytes | None:
        """Return a file's bytes; None when it is not there. For small ones."""
        answer = await self._http.call("GET", f"{_FILES}/artifacts/{quote(path)}", expected=(200, 404))
        return answer.body if answer.status == 200 else None

    async def remove(self, path: str) -> None:
        """Delete a file."""
        answer = await self._http.call("DELETE", f"{_FILES}/artifacts/{quote(path)}", expected=(200, 400, 404, 405, 501))
        if answer.status not in {200, 404}:
            raise Rejected(answer.status, "", f"files are not deleted there ({answer.status})")

    async def multipart(self, verb: str, path: str, value: Mapping[str, Any]) -> Any:
        """Create, complete or abort an upload in parts. Raises Rejected with status 501 where the server's store has none."""
        folder, _, name = path.rpartition("/")
        body = {"path": name, **value}
        answer = await self._bulk.call("POST", f"{_FILES}/mpu/{verb}/{quote(folder)}", value=body, expected=(200, 400, 404, 409, 422, 501))
        return answer.value if answer.status == 200 else self._checked(answer)

    async def put_part(self, url: str, headers: Mapping[str, str], body: FileBody) -> tuple[int, str]:
        """Send a part to the address that the server signed; return the status and the ETag."""
        answer = await self._bulk.call("PUT", url, body=body, headers=headers, bulk=True, expected=(200, 201, 400, 403, 404))
        return answer.status, answer.headers.get("ETag", "")

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.close()
        await self._bulk.close()


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def batch(metrics: Sequence[tuple[str, float, int, int]], params: Mapping[str, str], tags: Mapping[str, str]) -> bytes:
    """Return the JSON of a batch, as `Api.log` takes it. Metrics are (key, value, ms, step)."""
    parts = []
    if metrics:
        rows = [{"key": k, "value": _number(v), "timestamp": at, "step": step} for k, v, at, step in metrics]
        parts.append(b'"metrics":' + json.dumps(rows, separators=(",", ":")).encode())
    if params:
        parts.append(b'"params":' + json.dumps(_pairs(params)).encode())
    parts.append(b'"tags":' + json.dumps(_pairs(tags)).encode())
    return b",".join(parts)


def _number(value: float) -> float | str:
    if value - value == 0:
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def _tags(experiment: Mapping[str, Any]) -> dict[str, str]:
    return {str(tag.get("key")): str(tag.get("value")) for tag in experiment.get("tags", ())}
