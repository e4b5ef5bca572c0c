"""The site's reference curves: made when a rule is offered to a run, and kept with it, off the watch's thread."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from simspool.sdk.reference import Made, curve_from_file, curve_from_run
from simspool.spool import RunFolder, Spool, SpoolError, alert_definition, blobs, reference_curve

_AGAIN = 10.0  # s, then one that could not be had is tried again
_MOST = 16  # curves that are kept in memory


class Reference(NamedTuple):
    """What an alert of the site compares with, as it is written there: a `run` (id, prefix or name) or a `file`, and who says so."""

    kind: str
    text: str
    said_by: str


class Kept(NamedTuple):
    """An alert with its curve, which lies in the run's folder; what is to be recorded: the artifact first."""

    artifact: dict[str, Any]
    alert: dict[str, Any]


def make(spool: Spool, reference: Reference, body: Mapping[str, Any]) -> Made:
    """Return the curve that is meant. Raises SpoolError."""
    definition = body["alert"]
    if reference.kind == "file":
        return curve_from_file(reference.text)
    run = spool.run(spool.find_run(reference.text))
    return curve_from_run(run, definition["metric"], definition.get("xaxis", "step"))


def with_curve(body: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """Return an alert's body with the curve of this digest, and the id that follows."""
    out = {**body, "alert": {**body["alert"], "reference": digest}}
    out["id"] = alert_definition.identity(out)
    return out


def keep(spool: Spool, run: RunFolder, made: Made) -> dict[str, Any]:
    """Keep a curve with a run, durably; return the body of the artifact record that is to follow. Raises OSError."""
    blob = blobs.put_bytes(spool, run, made.data)
    blobs.publish(spool, run, [blob.digest])
    return {
        "name": reference_curve.artifact_name(blob.digest), "category": "input", "path": made.source, "mime": reference_curve.MIME,
        "digest": blob.digest, "size": blob.size,
    }  # fmt: skip


class References:
    """Makes and keeps curves in a thread of its own; with `wait`, in the caller's. What cannot be had is reported once."""

    def __init__(self, spool: Spool, report: Callable[[str], None], *, wait: bool = False) -> None:
        self._spool, self._report, self._wait = spool, report, wait
        self._pool: ThreadPoolExecutor | None = None
        self._made: dict[tuple[Any, ...], Made] = {}
        self._asked: dict[tuple[str, str], Future[Kept]] = {}
        self._failed: dict[tuple[str, str], float] = {}
        self._said: set[str] = set()

    def get(self, run: RunFolder, reference: Reference, body: Mapping[str, Any]) -> Kept | None:
        """Return an alert with its curve, None while it is being made. Raises LookupError when it cannot be had for now."""
        key = run.id, body["name"]
        if time.monotonic() < self._failed.get(key, 0.0):
            raise LookupError(body["name"])
        job = self._asked.get(key)
        if job is None:
            job = self._asked[key] = self._start(run, reference, body)
        if not job.done():
            return None
        del self._asked[key]
        try:
            return job.result()
        except (SpoolError, OSError) as error:
            self._failed[key] = time.monotonic() + _AGAIN
            said = f"{reference.said_by}: reference: {error}; runs are without this alert until that is there"
            if said not in self._said:
                self._said.add(said)
                self._report(said)
            raise LookupError(body["name"]) from None

    def _start(self, run: RunFolder, reference: Reference, body: Mapping[str, Any]) -> Future[Kept]:
        if self._wait:
            job: Future[Kept] = Future()
            try:
                job.set_result(self._keep(run, reference, body))
            except (SpoolError, OSError) as error:
                job.set_exception(error)
            return job
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="simspool-references")
        return self._pool.submit(self._keep, run, reference, body)

    def _keep(self, run: RunFolder, reference: Reference, body: Mapping[str, Any]) -> Kept:
        artifact = keep(self._spool, run, self._make(reference, body))
        return Kept(artifact, with_curve(body, artifact["digest"]))

    def _make(self, reference: Reference, body: Mapping[str, Any]) -> Made:
        """Make a curve, or take one that was made of the same bytes."""
        stamp = self._stamp(reference)
        key = reference.kind, reference.text, body["alert"]["metric"], body["alert"].get("xaxis"), stamp
        found = self._made.get(key)
        if found is None:
            found = make(self._spool, reference, body)
            self._made[key] = found
            while len(self._made) > _MOST:
                del self._made[next(iter(self._made))]
        return found

    def _stamp(self, reference: Reference) -> tuple[Any, ...]:
        """Return what changes when the bytes do that a curve is made of. Raises RunNotFound."""
        if reference.kind == "file":
            paths = [reference.text]
        else:
            run = self._spool.run(self._spool.find_run(reference.text))
            paths = sorted(glob.glob(os.path.join(glob.escape(run.writers), "*", "*")))
        found = []
        for path in paths:
            try:
                known = os.stat(path)
            except OSError:
                continue
            found.append((path, known.st_size, known.st_mtime_ns))
        return tuple(found)

    def close(self) -> None:
        """End the thread; what is being made is given up."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
