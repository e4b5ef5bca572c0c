"""Folders, runs, alerts, tags, grids, storage, tenants and users: created, changed, listed, deleted."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from filters import ME, chosen, ordered
from models import FORMAT, MODELS, Refused, check
from store import now

if TYPE_CHECKING:
    from simvue_server import StandIn

PAGE = 100
FINAL = {"completed", "failed", "terminated"}
ONE_OF_A_NAME = {"tags", "storage", "tenants"}


def page(query: dict[str, str], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what `start` and `count` ask for: a hundred at most, and that without `count`."""
    try:
        start, count = int(query.get("start") or 0), int(query.get("count") or 0)
    except ValueError:
        raise Refused(422, "start and count must be whole numbers") from None
    if start < 0 or count < 0:
        raise Refused(422, "start and count must not be negative")
    return found[start : start + min(count or PAGE, PAGE)]


class Objects:
    """What all kinds share, and what sets runs, folders and alerts apart."""

    def __init__(self, at: StandIn) -> None:
        self.at, self.store = at, at.store

    # creation
    def create(self, kind: str, query: dict[str, str], body: Any, line: str) -> tuple[int, Any]:
        """Create one object, or a list of them. 409 with the id of the one that is there already."""
        if isinstance(body, list):
            return 200, [self._create(kind, query, each, line)[1] for each in body]
        return self._create(kind, query, body, line)

    def _create(self, kind: str, query: dict[str, str], body: Any, line: str) -> tuple[int, dict[str, Any]]:
        doc = check(MODELS[kind], body, strict=self.at.options.strict).model_dump()
        if kind == "runs":
            return self._create_run(doc, line)
        if kind == "folders":
            return self._create_folder(doc)
        if kind == "alerts":
            if query.get("deduplicate", "").lower() in {"true", "1"}:
                for other in self.store.all("alerts"):
                    if all(other.get(key) == value for key, value in doc.items()):
                        return 200, {"id": other["id"]}
        elif kind in ONE_OF_A_NAME and (there := self.store.find(kind, doc["name"])):
            return 409, {"id": there["id"], "detail": f"{doc['name']} exists already"}
        return 200, {"id": self.store.add(kind, doc | ({"user": ME} if kind != "users" else {}))}

    def _create_folder(self, doc: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        path = doc["path"] = doc["path"].rstrip("/") or "/"
        if there := self.store.find("folders", path):
            return 409, {"id": there["id"], "detail": f"folder {path} exists already"}
        parts = path.split("/")[1:-1]
        for n in range(len(parts)):
            parent = "/" + "/".join(parts[: n + 1])
            if self.store.find("folders", parent) is None:
                self.store.add("folders", {"path": parent, "user": ME})
        return 200, {"id": self.store.add("folders", doc | {"user": ME, "starred": False})}

    def _create_run(self, doc: dict[str, Any], line: str) -> tuple[int, dict[str, Any]]:
        if doc["name"] is None:
            doc["name"] = f"run-{secrets.token_hex(4)}"
        self.at.faults.reject(line, "run", [doc["name"]])
        if self.at.options.unique_run_names and (there := self.store.find("runs", doc["name"])):
            return 409, {"id": there["id"], "name": there["name"], "detail": "a run of this name exists already"}
        doc["folder"] = doc["folder"].rstrip("/") or "/"
        if self.at.options.require_folder and self.store.find("folders", doc["folder"]) is None:
            raise Refused(404, f"folder {doc['folder']} not found")
        self._check_links(doc)
        doc |= {"user": ME, "starred": False, "abort_reason": None, "modified": now(), "_heartbeat": time.time()}
        doc["metadata"] = doc["metadata"] or {}
        self._follow_status(doc, given=doc)
        return 200, {"id": self.store.add("runs", doc), "name": doc["name"]}

    def _check_links(self, doc: dict[str, Any]) -> None:
        for identity in doc.get("alerts", []):
            if self.store.get("alerts", identity) is None:
                raise Refused(404, f"alert {identity} not found")
        for tag in doc.get("tags", []):
            if self.store.find("tags", tag) is None:
                self.store.add("tags", {"name": tag, "colour": "#8888ff", "description": None, "user": ME})

    @staticmethod
    def _follow_status(doc: dict[str, Any], given: dict[str, Any]) -> None:
        if doc["status"] == "running" and not doc.get("started"):
            doc["started"] = now()
        if doc["status"] == "running" and not given.get("endtime"):
            doc["endtime"] = None
        if doc["status"] in FINAL and not doc.get("endtime"):
            doc["endtime"] = now()

    # changes
    def update(self, kind: str, identity: str, body: Any, line: str) -> tuple[int, dict[str, Any]]:
        """Change the fields that are given. A run's metadata is merged, everything else replaced."""
        doc = self.need(kind, identity)
        if not isinstance(body, dict):
            raise Refused(422, "expected an object")
        model = MODELS[kind]
        whole = check(model, {key: doc[key] for key in model.model_fields if key in doc} | body, strict=self.at.options.strict).model_dump()
        patch = {key: whole[key] for key in body if key in model.model_fields}
        if kind == "runs":
            if "name" in patch:
                self.at.faults.reject(line, "run", [patch["name"]])
            if patch.get("status") == "created" and doc["status"] != "created":
                raise Refused(422, f"a run that was {doc['status']} cannot be created again")
            self._check_links(patch)
            if "metadata" in patch:
                patch["metadata"] = {**doc["metadata"], **(patch["metadata"] or {})}
            doc |= patch | {"modified": now()}
            if "status" in patch:
                doc["_heartbeat"] = time.time()
                self._follow_status(doc, patch)
        else:
            doc |= patch
        self.store.put(kind, doc)
        return 200, {"id": identity}

    def star(self, kind: str, identity: str, body: Any) -> tuple[int, dict[str, Any]]:
        """Set or take away the star."""
        doc = self.need(kind, identity)
        if not isinstance(body, dict) or not isinstance(body.get("starred"), bool):
            raise Refused(422, "starred must be true or false")
        self.store.put(kind, doc | {"starred": body["starred"]})
        return 200, {"id": identity}

    def delete(self, kind: str, identity: str, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """Remove an object; a folder with what `recursive`, `runs` and `runs_only` say."""
        doc = self.need(kind, identity)
        if kind != "folders":
            self.store.remove(kind, identity)
            return 200, {"id": identity}
        recursive, with_runs, runs_only = (query.get(k, "").lower() in {"true", "1"} for k in ("recursive", "runs", "runs_only"))
        below = doc["path"].rstrip("/") + "/"
        folders = [f for f in self.store.all("folders") if f["path"] == doc["path"] or (recursive and f["path"].startswith(below))]
        paths = {f["path"] for f in folders}
        runs = [r["id"] for r in self.store.all("runs") if r["folder"] in paths]
        if runs and not (with_runs or runs_only):
            raise Refused(409, f"folder {doc['path']} has runs")
        gone = [] if runs_only else [f["id"] for f in folders if f["path"] != "/"]
        for run in runs:
            self.store.remove("runs", run)
        for folder in gone:
            self.store.remove("folders", folder)
        return 200, {"folders": gone, "runs": runs}

    # reading
    def need(self, kind: str, identity: str) -> dict[str, Any]:
        """Return the object. Raises Refused(404) when there is none."""
        doc = self.store.get(kind, identity)
        if doc is None:
            raise Refused(404, f"{kind} {identity} not found")
        return self.refreshed(doc) if kind == "runs" else doc

    def read(self, kind: str, identity: str) -> tuple[int, dict[str, Any]]:
        """Return an object as the dialect shows it."""
        doc = self.need(kind, identity)
        if kind == "runs":
            doc = self.shown(doc)
        elif kind == "artifacts":
            doc = self.at.artifacts.shown(doc)
        return 200, doc

    def listed(self, kind: str, query: dict[str, str]) -> tuple[int, Any]:
        """Return a page of the objects that pass the filters; runs newest first."""
        docs = self.store.all(kind)
        if kind == "runs":
            docs = [self._linked(self.refreshed(doc)) for doc in reversed(docs)]
        found = ordered(chosen(docs, query.get("filters")), query.get("sorting"))
        some = page(query, found)
        if kind == "runs":
            some = [self.shown(doc, summary=query.get("return_metrics", "").lower() == "true") for doc in some]
        elif kind == "artifacts":
            some = [self.at.artifacts.shown(doc) for doc in some]
        return 200, some if kind == "storage" else {"data": some, "count": len(found)}

    # runs
    def refreshed(self, run: dict[str, Any]) -> dict[str, Any]:
        """Return the run, which is lost by now when its heartbeats ended."""
        timeout = run["heartbeat_timeout"]
        if run["status"] == "running" and timeout and time.time() - run["_heartbeat"] > timeout:
            run |= {"status": "lost", "modified": now()}
            self.store.put("runs", run)
        return run

    def alerts_of(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the alerts of a run, each with its `state` there."""
        states = dict(self.store.db.execute("SELECT alert, status FROM alert_status WHERE run = ?", (run["id"],)).fetchall())
        found = [doc for identity in run["alerts"] if (doc := self.store.get("alerts", identity))]
        return [doc | {"state": states.get(doc["id"])} for doc in found]

    def _linked(self, run: dict[str, Any]) -> dict[str, Any]:
        alerts = [{"name": a["name"], "id": a["id"], "status": a["state"]} for a in self.alerts_of(run)] if run["alerts"] else []
        rows = self.store.db.execute("SELECT artifact FROM run_artifacts WHERE run = ?", (run["id"],)).fetchall()
        return run | {"_alerts": alerts, "_artifacts": [{"id": row[0]} for row in rows]}

    def shown(self, run: dict[str, Any], *, summary: bool = True) -> dict[str, Any]:
        """Return a run as the dialect shows it: with its alerts, and what its metrics and events come to."""
        seen = {key: value for key, value in run.items() if not key.startswith("_")}
        seen["alerts"] = [
            {"alert": {k: v for k, v in a.items() if k != "state"}, "status": {"current": a["state"]}} for a in self.alerts_of(run)
        ]
        if summary:
            seen["metrics"] = self.store.summary(run["id"])
            count = self.store.db.execute("SELECT COUNT(*) FROM events WHERE run = ?", (run["id"],)).fetchone()[0]
            seen["events"] = {"count": {"count": count}}
        if run["started"]:
            end = datetime.strptime(run["endtime"], FORMAT) if run["endtime"] else datetime.now(UTC).replace(tzinfo=None)
            seconds = max(0.0, (end - datetime.strptime(run["started"], FORMAT)).total_seconds())
            seen["runtime"] = f"{int(seconds // 3600)}:{int(seconds // 60) % 60:02d}:{seconds % 60:09.6f}"
        else:
            seen["runtime"] = None
        return seen

    def heartbeat(self, identity: str) -> tuple[int, dict[str, Any]]:
        """Take a run's sign of life. A lost run is running again; one that has ended stays so."""
        run = self.need("runs", identity)
        run["_heartbeat"] = time.time()
        if run["status"] == "lost":
            run["status"] = "running"
        self.store.put("runs", run)
        return 200, {}

    def abort(self, identity: str, body: Any) -> tuple[int, dict[str, Any]]:
        """Ask for a run's end."""
        run = self.need("runs", identity)
        if not isinstance(body, dict) or not isinstance(body.get("reason"), str):
            raise Refused(422, "reason must be a string")
        self.store.put("runs", run | {"abort_reason": body["reason"]})
        return 200, {"id": identity}

    def aborted(self, identity: str) -> tuple[int, dict[str, Any]]:
        """Tell whether somebody, or an alert, asked for a run's end."""
        run = self.need("runs", identity)
        by_alert = any(a["abort"] and a["state"] == "critical" for a in self.alerts_of(run))
        return 200, {"status": run["abort_reason"] is not None or by_alert}

    def set_alert(self, identity: str, run: str, body: Any) -> tuple[int, dict[str, Any]]:
        """Set a user alert's state in a run."""
        alert = self.need("alerts", identity)
        self.need("runs", run)
        if alert["source"] != "user":
            raise Refused(422, "only the state of a user alert can be set")
        status = body.get("status") if isinstance(body, dict) else None
        if status not in {"ok", "critical"}:
            raise Refused(422, "status must be ok or critical")
        self.store.db.execute("INSERT OR REPLACE INTO alert_status VALUES (?, ?, ?)", (identity, run, status))
        return 200, {"id": identity}

    def alert_state(self, identity: str, run: str) -> tuple[int, dict[str, Any]]:
        """Return an alert's state in a run, None before it was first set."""
        self.need("alerts", identity)
        self.need("runs", run)
        row = self.store.db.execute("SELECT status FROM alert_status WHERE alert = ? AND run = ?", (identity, run)).fetchone()
        return 200, {"status": row[0] if row else None}

    def stats(self) -> tuple[int, dict[str, Any]]:
        """Return how many runs there are in each state."""
        runs = [self.refreshed(run) for run in self.store.all("runs")]
        states = ("created", "running", "completed", "failed", "terminated", "lost")
        return 200, {"runs": {state: sum(run["status"] == state for run in runs) for state in states} | {"total": len(runs)}}
