"""A server as a Client's source: the Simvue REST dialect, over urllib.

The token goes to the configured server only: redirects are not followed, proxies of the environment are not used, and a
presigned download URL gets no token. Every wait is bounded.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from simspool.spool import InvalidRecord, RunNotFound, ids

from .errors import ArtifactNotFound, ConfigError, ServerError, Unreachable
from .source import ALERT_KEYS, ARTIFACT_KEYS, RUN_KEYS, Artifact, Series, joined

_TIMEOUT = 10.0
_ANSWER_TIMEOUT = 120.0  # many points take a server some time
_MAX_ANSWER = 1 << 30
_PAGE = 100
_CHUNK = 1 << 20


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class ServerSource:
    """See source.Source."""

    def __init__(self, url: str, token: str) -> None:
        base = url.rstrip("/")
        if not base.startswith(("http://", "https://")):
            raise ConfigError(f"the server's URL {url!r} is not valid: it must begin with http:// or https://, check SIMSPOOL_URL")
        self._base = base if base.endswith("/api") else f"{base}/api"
        self._token = token
        self._opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))

    def find(self, text: str) -> str:
        """See Source."""
        if ids.is_id(text) and self._get(f"/runs/{text}", missing=None) is not None:
            return text
        found = [r["id"] for r in self._pages("/runs", [f"id contains {text}"]) if r["id"].startswith(text)] if text.isalnum() else []
        if len(found) == 1:
            return str(found[0])
        named = [r["id"] for r in self._pages("/runs", [f"name == {text}"]) if r.get("name") == text]
        if len(named) == 1:
            return str(named[0])
        several = named or found
        if several:
            raise RunNotFound(f"{len(several)} runs match {text!r}: give one of the ids {', '.join(several[-5:])}")
        raise RunNotFound(f"no run {text!r} on the server {self._base}: `agent sync` sends what is in the spool")

    def run(self, run: str) -> dict[str, Any]:
        """See Source."""
        found = self._get(f"/runs/{run}", missing=None)
        if not isinstance(found, dict):
            raise RunNotFound(f"no run {run!r} on the server {self._base}")
        return _only(found, RUN_KEYS)

    def runs(self, filters: Sequence[str], start: int, count: int | None, sorting: Sequence[tuple[str, bool]]) -> list[dict[str, Any]]:
        """See Source."""
        return [_only(run, RUN_KEYS) for run in self._pages("/runs", filters, start, count, sorting)]

    def metric_names(self, run: str) -> list[str]:
        """See Source."""
        return sorted(str(name) for name in self._list("/metrics/names", {"runs": json.dumps([run])}))

    def values(self, runs: Sequence[str], metrics: Sequence[str], axis: str, most: int | None) -> Series:
        """See Source."""
        found: Series = self._metrics(runs, metrics, axis, most, aggregate=False)
        return found

    def aggregated(self, runs: Sequence[str], metrics: Sequence[str], axis: str, most: int | None) -> dict[str, list[dict[str, Any]]]:
        """See Source."""
        found: dict[str, list[dict[str, Any]]] = self._metrics(runs, metrics, axis, most, aggregate=True)
        return found

    def events(self, run: str, contains: str | None, start: int, count: int | None) -> list[dict[str, Any]]:
        """See Source."""
        filters = json.dumps([f"event.message contains {contains}"]) if contains else ""
        answer = self._get("/events", {"run": run, "filters": filters, "start": start, "count": count or 0})
        listed = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(listed, list):
            raise self._nonsense("/events")
        return [{key: event.get(key) for key in ("message", "timestamp", "log_level")} for event in listed]

    def alerts(self, run: str) -> list[dict[str, Any]]:
        """See Source."""
        answer = self._get(f"/runs/{run}")
        listed = answer.get("alerts") if isinstance(answer, dict) else None
        if not isinstance(listed, list) or not all(isinstance(e, dict) and isinstance(e.get("alert"), dict) for e in listed):
            raise self._nonsense(f"/runs/{run}")
        found = []
        for entry in listed:
            status = entry.get("status")
            told = status if isinstance(status, dict) else {"current": status}
            body = _only(entry["alert"], ALERT_KEYS)
            body |= {"notification": body["notification"] or "none", "abort": bool(body["abort"]), "alert": body["alert"] or None}
            if isinstance(body["alert"], dict) and "when" in body["alert"]:
                body["source"] = "alerts"  # shown as `user` to those who know no others
            found.append(body | {"status": told.get("current"), "since": told.get("since"), "reason": told.get("reason")})
        return sorted(found, key=lambda alert: str(alert["name"]))

    def gaps(self, run: str) -> list[dict[str, Any]]:
        """See Source. A server of another kind declares none."""
        path = f"/simspool/v1/runs/{run}/gaps"
        answer = self._get(path, missing={"gaps": []})
        listed = answer.get("gaps") if isinstance(answer, dict) else None
        if not isinstance(listed, list) or not all(isinstance(gap, dict) for gap in listed):
            raise self._nonsense(path)
        return joined((str(g.get("writer")), int(g.get("first", 0)), int(g.get("last", 0)), str(g.get("reason"))) for g in listed)

    def artifacts(self, run: str) -> list[Artifact]:
        """See Source."""
        listed = self._list(f"/runs/{run}/artifacts", {})
        found = [Artifact(_only(entry, ARTIFACT_KEYS), entry.get("url")) for entry in listed if isinstance(entry, dict)]
        return sorted(found, key=lambda a: a.name)

    def content(self, artifact: Artifact) -> Iterator[bytes]:
        """See Source."""
        if not artifact.place:
            raise ArtifactNotFound(f"the bytes of artifact {artifact.name!r} have not arrived on the server yet: `agent sync` sends them")
        url = urllib.parse.urljoin(self._base + "/", artifact.place)
        if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
            raise ServerError(f"the server gave an odd address for artifact {artifact.name!r}: {url[:200]}")
        with self._open(urllib.request.Request(url), _TIMEOUT) as answer:  # noqa: S310 - the scheme was checked
            try:
                while data := answer.read(_CHUNK):
                    yield data
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(f"the download of artifact {artifact.name!r} broke off: {error}") from None

    # ------------------------------------------------------------------ requests

    def _metrics(self, runs: Sequence[str], metrics: Sequence[str], axis: str, most: int | None, *, aggregate: bool) -> Any:
        query = {
            "runs": json.dumps(list(runs)), "metrics": json.dumps(list(metrics)), "xaxis": axis, "aggregate": aggregate, "max_points": most,
        }  # fmt: skip
        answer = self._get("/metrics", query)
        if not isinstance(answer, dict):
            raise self._nonsense("/metrics")
        return answer

    def _pages(
        self, path: str, filters: Sequence[str], start: int = 0, count: int | None = None, sorting: Sequence[tuple[str, bool]] = ()
    ) -> Iterator[dict[str, Any]]:
        given = 0
        query: dict[str, Any] = dict.fromkeys(("return_metadata", "return_timing", "return_system"), True)
        query["filters"] = json.dumps(list(filters))
        if sorting:
            query["sorting"] = json.dumps([{"id": column, "desc": descending} for column, descending in sorting])
        while count is None or given < count:
            size = _PAGE if count is None else min(_PAGE, count - given)
            answer = self._get(path, {**query, "start": start + given, "count": size})
            listed = answer.get("data") if isinstance(answer, dict) else None
            if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
                raise self._nonsense(path)
            yield from listed
            given += len(listed)
            if len(listed) < size:
                return

    def _list(self, path: str, query: dict[str, Any]) -> list[Any]:
        answer = self._get(path, query, missing=[])
        if not isinstance(answer, list):
            raise self._nonsense(path)
        return answer

    def _nonsense(self, path: str) -> ServerError:
        return ServerError(f"{self._base}{path} does not answer like a Simvue server: check SIMSPOOL_URL")

    _required = object()

    def _get(self, path: str, query: dict[str, Any] | None = None, *, missing: Any = _required) -> Any:
        """Return the JSON of an answer; `missing` for a 404, where one is given."""
        kept = {k: str(v).lower() if isinstance(v, bool) else v for k, v in (query or {}).items() if v is not None and v != ""}
        url = f"{self._base}{urllib.parse.quote(path)}" + (f"?{urllib.parse.urlencode(kept)}" if kept else "")
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        try:
            with self._open(urllib.request.Request(url, headers=headers), _ANSWER_TIMEOUT) as answer:  # noqa: S310 - of the configured server
                data = answer.read(_MAX_ANSWER + 1)
        except ServerError as error:
            if error.status == 404 and missing is not self._required:
                return missing
            if error.status == 404:
                raise RunNotFound(str(error)) from None
            if error.status == 422:
                raise InvalidRecord(str(error)) from None
            raise
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{self._base} broke off its answer: {error}") from None
        if len(data) > _MAX_ANSWER:
            raise ServerError(f"the answer of {self._base}{path} is over {_MAX_ANSWER >> 20} MiB: ask for less, or give max_points")
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise self._nonsense(path) from None

    def _open(self, request: urllib.request.Request, timeout: float) -> Any:
        try:
            return self._opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise ServerError(_explain(error, self._base), error.code) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise Unreachable(f"no answer from {self._base}: {reason}. Is the server running, and SIMSPOOL_URL right?") from None


def _explain(error: urllib.error.HTTPError, base: str) -> str:
    try:
        detail = json.loads(error.read(1 << 16)).get("detail")
    except (OSError, ValueError, AttributeError, http.client.HTTPException, RecursionError):
        detail = None
    if error.code in {401, 403}:
        return f"{base} does not accept the token ({error.code}): check SIMSPOOL_TOKEN"
    if 300 <= error.code < 400:
        return f"{base} wants to redirect ({error.code}), which is not followed: set SIMSPOOL_URL to the final address"
    return f"{base} answered {error.code}: {str(detail)[:500] if detail else error.reason}"


def _only(found: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: found.get(key) for key in keys}
