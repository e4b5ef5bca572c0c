"""Notices as the catalog would give them, and a folded run to go with them."""

from __future__ import annotations

from typing import Any

from simspool.agent.notify.queue import Notice
from simspool.spool import Kind, alert_definition, ids, runstate

RUN = ids.to_text(ids.new_id())
NOW = 1_760_000_000  # wall s
ALERT = alert_definition.define(
    "diverged", "metrics", metric="loss", rule="is above", threshold=3.0, notification="email", trigger_abort=True
)


def folded(name: str = "orbit", *, alert: dict[str, Any] = ALERT, **fields: Any) -> dict[str, Any]:
    """Return the state of a run that began 60 s before NOW."""
    state = runstate.empty()
    began = (NOW - 60) * 10**9
    body = {"name": name, "status": "running", "folder": "/a/b", "system": {"hostname": "node7"}, **fields}
    runstate.apply(state, "w", 1, Kind.RUN, began, body)
    runstate.apply(state, "w", 2, Kind.ALERT, began, alert)
    return state


def firing(number: int = 0, *, run: str = "orbit", event: str = "firing", at: float = 30.0, recorded: float = NOW, **body: Any) -> Notice:
    """Return a decision that the loss is too high."""
    made = {
        "id": f"{number:032x}", "alert": "diverged", "rule": "x", "state": event, "stream": {"writer": "w", "metric": "loss"}, "at": at,
        "trigger": ["w", 3], "inputs": {"value": 4.5, "count": 3}, "reason": "loss is 4.5", "notification": "email", **body,
    }  # fmt: skip
    return Notice(made["id"], RUN, event, int(recorded * 1e9), made, folded(run))


def ended(status: str = "failed", reason: str | None = "exit code 3") -> Notice:
    """Return the end of a run."""
    return Notice("e" * 32, RUN, "ended", NOW * 10**9, {"status": status, "reason": reason, "finished": NOW * 10**9}, folded())
