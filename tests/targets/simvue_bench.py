"""The Simvue stand-in as a bench: a process of its own, counted by its own dump and not by the target's code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conformance import Counted, Fault, Promise
from standin import StandIn

from simspool.agent.targets.settings import TargetSettings
from simspool.spool import Kind, Spool, Writer

RECORDS = "POST /api/(metrics|events)$"


class SimvueBench:
    """See conformance.Bench. `lose_replies` and `refuse` hit all requests that change something."""

    name = "simvue"
    supports: frozenset[Fault] = frozenset({
        "kill", "backup", "temporary", "lost-reply", "poison-record", "small-bodies", "poison-run",
    })  # fmt: skip
    promise = Promise()

    def __init__(self, folder: Path, **options: Any) -> None:
        self.server = StandIn.start(folder, **options)

    def settings(self, **changed: Any) -> TargetSettings:
        return TargetSettings("simvue", "simvue", self.server.url, self.server.token, **changed)

    def run(self, run: str) -> dict[str, Any] | None:
        """Return all that the server has of a run of ours."""
        self.heal()
        found = [one for one in self.server.dump()["runs"].values() if one["metadata"].get("simspool.run") == run]
        assert len(found) <= 1, f"{len(found)} runs there are one here"
        return found[0] if found else None

    def has(self, run: str) -> Counted | None:
        found = self.run(run)
        if found is None:
            return None
        names = {there: ours for ours, there in json.loads(found["metadata"].get("simspool.names", "{}")).items()}
        metrics = {names.get(name, name): [(step, value) for step, _, _, value in points] for name, points in found["metrics"].items()}
        files = {}
        for one in found["artifacts"]:
            assert one["name"] not in files, f"{one['name']} is there twice"
            files[one["name"]] = one["stored_sha256"]
        return Counted(metrics, [event["message"] for event in found["events"]], files, found["status"])

    def heal(self) -> None:
        if self.server.process is None:
            self.server.restart()
        self.server.heal()

    def kill(self) -> None:
        self.server.kill()

    def restart(self) -> None:
        self.server.restart()

    def backup(self) -> Path:
        return self.server.backup()

    def restore(self, copy: Path) -> None:
        self.server.restore(copy)

    def refuse(self, status: int, times: int, after: float | None = None) -> None:
        self.server.faults({"do": "status", "status": status, "retry_after": after, "path": "(POST|PUT) /api", "count": times})

    def lose_replies(self, times: int) -> None:
        self.server.faults({"do": "lose-reply", "path": "(POST|PUT) /api", "count": times})

    def poison(self, writer: Writer) -> int:
        """A metric that the server refuses, a step that is below 0, and an event."""
        self.server.faults({"do": "reject", "kind": "metric", "name": "poison"}, {"do": "reject", "kind": "event", "name": "bad words"})
        assert writer.metrics({"poison": 1.0, "beside": 2.0}, step=3)
        assert writer.record(Kind.METRICS_JSON, {"values": {"early": 1.0}, "step": -3})
        assert writer.record(Kind.EVENT, {"message": "these are bad words"})
        return 3

    def refuse_run(self, spool: Spool, run: str) -> None:
        """No change of it is taken any more."""
        found = self.run(run)
        assert found is not None
        self.server.faults({"do": "status", "status": 422, "path": f"PUT /api/runs/{found['id']}", "count": None})

    def limit_bodies(self, size: int) -> None:
        self.server.faults({"do": "body-limit", "bytes": size, "path": RECORDS})
