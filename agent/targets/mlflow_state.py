"""What people see first of a run in MLflow: params, tags, name and status, made of the run's folded state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simspool.spool import runstate
from simspool.spool.records import FINAL_STATUSES

from .mlflow_words import PARAM_LENGTH, TAG_LENGTH, name_there, text

RUN, MARK, NAME, TAG, METADATA = "simspool.run", "simspool.mark.", "simspool.name.", "simspool.tag.", "simspool.metadata."
ALERTS = "simspool/alerts.json"
_STATUS = {
    "created": "SCHEDULED", "running": "RUNNING", "completed": "FINISHED", "failed": "FAILED", "terminated": "KILLED", "lost": "KILLED",
}  # fmt: skip
_BACK = {"SCHEDULED": "created", "RUNNING": "running", "FINISHED": "completed", "FAILED": "failed", "KILLED": "terminated"}
_RUN_NAME = 250  # characters
_MOST_TAGS = 100  # of the user's, each as a tag of its own


@dataclass(slots=True)
class Wanted:
    """What a run is to have. `end` is in ms, None while it runs.

    `changes`: a key of a param or tag, and (what, detail) to be remarked when it is set.
    """

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    alerts: str = ""
    name: str = ""
    status: str = "RUNNING"
    end: int | None = None
    changes: dict[str, tuple[str, str]] = field(default_factory=dict)


def status_here(status: str, tags: Mapping[str, str]) -> str | None:
    """Return a status of MLflow's in our words; KILLED is two of ours."""
    ours = tags.get("simspool.status", "")
    return ours if _STATUS.get(ours) == status else _BACK.get(status)


def wanted(state: Mapping[str, Any], params: Mapping[str, str], has: Mapping[str, str]) -> Wanted:
    """Return what a run's state is in MLflow, where it has `params` and tags (`has`) already.

    Params never change there, so later values go to tags.
    """
    made = Wanted()
    if not state:
        return made
    for key, value in runstate.metadata(state).items():
        _metadata(made, key, value, params, has)
    tags = made.tags
    ours = runstate.status(state)
    tags["simspool.status"] = ours
    why = runstate.reason(state)
    if why:
        _put(made, "simspool.reason", why)
    _put(made, "simspool.folder", str(runstate.value(state, "folder", "/")))
    description = runstate.value(state, "description")
    if description:
        _put(made, "mlflow.note.content", str(description))
    labels = runstate.tags(state)
    if labels:
        _put(made, "simspool.tags", json.dumps(labels, ensure_ascii=False))
        for one in labels[:_MOST_TAGS]:
            tags[name_there(TAG + one)] = "true"
        if len(labels) > _MOST_TAGS:
            made.changes["simspool.tags"] = ("not kept", f"tags beyond {_MOST_TAGS} as tags of their own")
    _of_system(made, runstate.value(state, "system"))
    alerts = runstate.alerts(state)
    if alerts:
        made.alerts = json.dumps(alerts, sort_keys=True, default=str)
        critical = [name for name, alert in alerts.items() if alert["state"] == "critical"]
        _put(made, "simspool.alerts", json.dumps({"critical": critical, "of": len(alerts)}, ensure_ascii=False))
    made.name = run_name(state)
    whole = str(runstate.value(state, "name") or "")
    if len(whole) > _RUN_NAME:
        _put(made, "simspool.run_name", whole)
        made.changes["simspool.run_name"] = ("truncated", f"the run's name: to {_RUN_NAME} characters; whole in simspool.run_name")
    made.status = _STATUS[ours]
    finished = runstate.finished(state)
    if ours in FINAL_STATUSES and finished is not None:
        made.end = finished // 1_000_000
    return made


def run_name(state: Mapping[str, Any]) -> str:
    """Return a run's name as MLflow has room for; "" for none."""
    return text(str(runstate.value(state, "name") or ""))[:_RUN_NAME] if state else ""


def _metadata(made: Wanted, key: str, value: Any, params: Mapping[str, str], has: Mapping[str, str]) -> None:
    said = text(value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str))
    there = name_there(key)
    if there != key:
        made.changes[there] = ("renamed", f"metadata {text(key)[:200]} as {there}")
        made.tags[NAME + there] = text(key)[:TAG_LENGTH]
    tag = name_there(METADATA + key)
    if len(said) > PARAM_LENGTH:
        kept = said[:PARAM_LENGTH]
        if len(said) > TAG_LENGTH:
            made.changes[tag] = ("truncated", f"metadata {text(key)[:200]}: to {TAG_LENGTH} characters; whole in simspool/records")
        made.tags[tag] = said[:TAG_LENGTH]
    else:
        kept = said
    if there not in params:
        made.params[there] = kept
    elif params[there] != kept:
        made.tags[tag] = said[:TAG_LENGTH]
        made.changes[tag] = ("changed", f"metadata {text(key)[:200]}: the param keeps its first value, the new one is tag {tag}")
    elif tag in has:  # of an earlier change
        made.tags[tag] = said[:TAG_LENGTH]


def _put(made: Wanted, key: str, value: str) -> None:
    said = text(value)
    if len(said) > TAG_LENGTH:
        made.changes[key] = ("truncated", f"{key}: to {TAG_LENGTH} characters")
    made.tags[key] = said[:TAG_LENGTH]


def _of_system(made: Wanted, system: Any) -> None:
    if not isinstance(system, dict):
        return
    git, python = system.get("git"), system.get("python")
    found = {
        "simspool.host": system.get("hostname"),
        "simspool.cwd": system.get("cwd"),
        "mlflow.source.name": system.get("cwd"),
        "mlflow.source.git.commit": git.get("commit") if isinstance(git, dict) else None,
        "mlflow.source.git.branch": git.get("ref") if isinstance(git, dict) else None,
        "simspool.python": python.get("executable") if isinstance(python, dict) else None,
    }
    for key, value in found.items():
        if isinstance(value, str) and value:
            _put(made, key, value)
