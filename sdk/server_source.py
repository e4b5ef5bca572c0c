"""A server as a Client's source: the Simvue REST dialect, over urllib.

The token goes to the configured server only: redirects are not followed, proxies of the environment are not used, and a
presigned download URL gets no token. Certificates are always verified (tls.py). Every wait is bounded.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from simspool.spool import DamagedBlob, InvalidRecord, RunNotFound, ids

from . import tls
from .address import check_address
from .errors import ArtifactNotFound, ServerError, Unreachable
from .source import ALERT_KEYS, ARTIFACT_KEYS, RUN_KEYS, Artifact, Series, joined
from .way import Way

_TIMEOUT = 10.0
_ANSWER_TIMEOUT = 120.0  # many points take a server some time
_MAX_ANSWER = 1 << 30
_PAGE = 100
_MOST_ENTRIES = 1_000_000  # of a list: a server might have no end of pages
_CHUNK = 1 << 20


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class ServerSource:
    """See source.Source."""

    def __init__(self, url: str, token: str, way: Way | None = None) -> None:
        base = check_address(url, "the server's URL (SIMSPOOL_URL)")
        self._way = way or Way()
        self._base = base if base.endswith("/api") else f"{base}/api"
        self._token = token
        self._opener = self._make_opener(with_certificate=True)

    def find(self, text: str) -> str:
        """See Source."""
        if ids.is_id(text) and self._get(f"/runs/{text}", missing=None) is not None:
            return text
        found = [i for i, _ in self._named([f"id contains {text}"]) if i.startswith(text)] if text.isalnum() else []
        if len(found) == 1:
            return found[0]
        named = [i for i, name in self._named([f"name == {text}"]) if name == text]
        if len(named) == 1:
            return named[0]
        several = named or found
        if several:
            raise RunNotFound(f"{len(several)} runs match {text!r}: give one of the ids {', '.join(several[-5:])}")
        raise RunNotFound(f"no run {text!r} on the server {self._base}: `agent sync` sends what is in the spool")

    def _named(self, filters: Sequence[str]) -> list[tuple[str, Any]]:
        """Return (id, name) of the runs that meet the filters."""
        found = [(entry.get("id"), entry.get("name")) for entry in self._pages("/runs", filters)]
        if not all(isinstance(identity, str) and identity.isascii() for identity, _ in found):
            raise self._nonsense("/runs")
        return [(str(identity), name) for identity, name in found]

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
        for series in found.values():
            if not isinstance(series, dict) or not all(_are_points(points, axis) for points in series.values()):
                raise self._nonsense("/metrics")
        return found

    def aggregated(self, runs: Sequence[str], metrics: Sequence[str], axis: str, most: int | None) -> dict[str, list[dict[str, Any]]]:
        """See Source."""
        found: dict[str, list[dict[str, Any]]] = self._metrics(runs, metrics, axis, most, aggregate=True)
        if not all(_are_points(points, axis, "average") for points in found.values()):
            raise self._nonsense("/metrics")
        return found

    def events(self, run: str, contains: str | None, start: int, count: int | None) -> list[dict[str, Any]]:
        """See Source."""
        filters = json.dumps([f"event.message contains {contains}"]) if contains else ""
        answer = self._get("/events", {"run": run, "filters": filters, "start": start, "count": count or 0})
        listed = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(listed, list) or not all(isinstance(event, dict) for event in listed):
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
        if not all(type(gap.get(end, 0)) is int for gap in listed for end in ("first", "last")):
            raise self._nonsense(path)
        return joined((str(g.get("writer")), g.get("first", 0), g.get("last", 0), str(g.get("reason"))) for g in listed)

    def artifacts(self, run: str) -> list[Artifact]:
        """See Source."""
        listed = self._list(f"/runs/{run}/artifacts", {})
        if not all(isinstance(entry, dict) and isinstance(entry.get("url"), str | None) for entry in listed):
            raise self._nonsense(f"/runs/{run}/artifacts")
        found = [Artifact(_only(entry, ARTIFACT_KEYS), entry.get("url")) for entry in listed]
        return sorted(found, key=lambda a: a.name)

    def content(self, artifact: Artifact) -> Iterator[bytes]:
        """See Source."""
        if not artifact.place:
            raise ArtifactNotFound(f"the bytes of artifact {artifact.name!r} have not arrived on the server yet: `agent sync` sends them")
        url = _address(self._base + "/", artifact.place)
        if not url:
            raise ServerError(f"the server gave an odd address for artifact {artifact.name!r}: {artifact.place[:200]!r}")
        size, most = 0, artifact.shown["size"]
        elsewhere = None if url.startswith(self._base) else self._make_opener(with_certificate=False)
        with self._open(urllib.request.Request(url), _TIMEOUT, elsewhere) as answer:  # noqa: S310 - the scheme was checked
            try:
                while data := answer.read(_CHUNK):
                    size += len(data)
                    if isinstance(most, int) and size > most:  # it might never end, and the disk is finite
                        raise DamagedBlob(f"the server sends more than the {most} bytes that artifact {artifact.name!r} has")
                    yield data
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(f"the download of artifact {artifact.name!r} broke off: {error}") from None

    # ------------------------------------------------------------------ requests

    def _make_opener(self, *, with_certificate: bool) -> urllib.request.OpenerDirector:
        handlers: list[Any] = [_NoRedirect, urllib.request.ProxyHandler(self._proxies())]
        if self._base.startswith("https://") or not with_certificate:
            context = tls.client_context(self._way.tls, with_certificate=with_certificate)
            handlers.append(urllib.request.HTTPSHandler(context=context))
        return urllib.request.build_opener(*handlers)

    def _problem(self, error: Exception) -> tls.TlsProblem | None:
        wrong = tls.problem(error, self._way.tls)
        if wrong is None and self._base.startswith("https://") and isinstance(
            getattr(error, "reason", error), ConnectionResetError | BrokenPipeError | ConnectionAbortedError
        ):
            return tls.TlsProblem(tls.closed_at_once(self._way.tls), False)
        return wrong

    def _proxies(self) -> dict[str, str]:
        if self._way.proxy is None:
            return {}
        auth = self._way.proxy_auth()
        scheme, _, rest = self._way.proxy.partition("://")
        user = "" if auth is None else ":".join(urllib.parse.quote(part, safe="") for part in auth) + "@"
        return dict.fromkeys(("http", "https"), f"{scheme}://{user}{rest}")

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
            if given >= _MOST_ENTRIES:
                raise ServerError(f"{self._base}{path} lists more than {_MOST_ENTRIES} entries: give a filter, or count_limit")
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
            wrong = self._problem(error)
            why = f"{self._base} broke off its answer: {error}" if wrong is None else f"no connection to {self._base}: {wrong.text}"
            raise Unreachable(why) from None
        if len(data) > _MAX_ANSWER:
            raise ServerError(f"the answer of {self._base}{path} is over {_MAX_ANSWER >> 20} MiB: ask for less, or give max_points")
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise self._nonsense(path) from None

    def _open(self, request: urllib.request.Request, timeout: float, opener: urllib.request.OpenerDirector | None = None) -> Any:
        try:
            return (opener or self._opener).open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            with error:
                raise ServerError(_explain(error, self._base), error.code) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            wrong = self._problem(error)
            if wrong is not None:
                raise Unreachable(f"no connection to {self._base}: {wrong.text}") from None
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


def _are_points(points: Any, axis: str, value: str = "value") -> bool:
    """Say whether an answer's points have places that can be sorted, of one kind, and values."""
    kinds: tuple[type, ...] = (str,) if axis == "timestamp" else (int, float)
    return isinstance(points, list) and all(isinstance(p, dict) and isinstance(p.get(axis), kinds) and value in p for p in points)


def _address(base: str, place: str) -> str:
    """Return the address of what a server names, "" for what is none of http."""
    try:
        url = urllib.parse.urljoin(base, place)
        return url if urllib.parse.urlsplit(url).scheme in {"http", "https"} else ""
    except ValueError:
        return ""


def _only(found: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: found.get(key) for key in keys}
