"""Reading the embedded server's answer to a recount (docs/drain-protocol.md). What makes no sense raises Unreachable."""

from __future__ import annotations

from typing import Any

from .port import Recount, Unreachable


def parse(url: str, answer: Any, run: str) -> Recount | None:
    """Return what the server counted of a run, None when it does not have the run. Files whose bytes are not there do not count."""
    runs = answer.get("runs")
    if not isinstance(runs, dict):
        raise Unreachable(f"{url} does not say what it has of runs: is it older than this simspool?")
    found = runs.get(run)
    if found is None:
        return None
    try:
        metrics = {str(name): _whole(one["count"]) for name, one in found["metrics"].items()}
        edges: dict[str, dict[str, tuple[int, float]]] = {"first": {}, "last": {}}
        for name, one in found["metrics"].items():
            for edge, kept in edges.items():
                if edge in one:
                    step, value = one[edge]
                    kept[str(name)] = int(step), float(value)
        files = {str(f["name"]): str(f["digest"]) for f in found["files"] if f["there"] is True}
        marks = {str(writer): _whole(mark) for writer, mark in found["marks"].items()}
        return Recount(metrics, _whole(found["events"]), files, str(found["status"]), edges["first"], edges["last"], marks=marks)
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        raise Unreachable(f"{url} answers a recount that makes no sense for run {run}") from None


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value
