"""A directory as a bench: counted with nothing but a JSON parser and `sha256`, as a reader without simspool would."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

from conformance import Counted, Fault, Promise

from simspool.agent.targets.settings import TargetSettings
from simspool.spool import Spool, Writer

_ODD = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class DirectoryBench:
    """See conformance.Bench. The server is the folder itself: to take it away is to kill it."""

    name = "directory"
    supports: frozenset[Fault] = frozenset({"kill", "backup", "poison-run"})
    promise = Promise()

    def __init__(self, folder: Path, form: str = "jsonl") -> None:
        self.folder, self.form = folder, form
        self._away = folder.with_name(f"{folder.name}-away")
        folder.mkdir(parents=True, exist_ok=True)
        self._blocked: list[Path] = []

    def settings(self) -> TargetSettings:
        return TargetSettings("results", "directory", str(self.folder), options={"format": self.form})

    def run(self, run: str) -> Path | None:
        """Return a run's folder."""
        for found in self.folder.glob("**/run.json"):
            if "artifacts" not in found.parts and found.is_file() and json.loads(found.read_text())["id"] == run:
                return found.parent
        return None

    def has(self, run: str) -> Counted | None:
        self.heal()
        folder = self.run(run)
        if folder is None:
            return None
        found = Counted({}, [], {}, json.loads((folder / "run.json").read_text()).get("status"))
        in_order(folder)
        if (folder / "metrics.csv").exists():
            with open(folder / "metrics.csv", newline="") as file:
                for row in csv.DictReader(file):
                    value = float(row["value"])
                    exact = int(row["value"]) if row["value"].lstrip("-").isdecimal() else value
                    found.metrics.setdefault(row["metric"], []).append((int(row["step"]), exact))
        else:
            for point in jsonl(folder / "metrics.jsonl"):
                for name, value in point["values"].items():
                    found.metrics.setdefault(name, []).append((point["step"], _ODD.get(value, value) if isinstance(value, str) else value))
        found.events = [event["message"] for event in jsonl(folder / "events.jsonl")]
        for kept in {line["key"]: line for line in jsonl(folder / "artifacts.jsonl")}.values():
            path = folder / kept["path"]
            if path.exists():
                found.files[kept["name"]] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def heal(self) -> None:
        if self._away.exists():
            self.restart()
        while self._blocked:
            folder = self._blocked.pop()
            folder.unlink()
            folder.with_name("elsewhere").rename(folder)

    def kill(self) -> None:
        self.folder.rename(self._away)

    def restart(self) -> None:
        self._away.rename(self.folder)

    def backup(self) -> Path:
        copy = self.folder.with_name(f"{self.folder.name}-copy")
        shutil.copytree(self.folder, copy)
        return copy

    def restore(self, copy: Path) -> None:
        shutil.rmtree(self.folder)
        copy.rename(self.folder)

    def refuse(self, status: int, times: int, after: float | None = None) -> None:
        raise NotImplementedError

    def lose_replies(self, times: int) -> None:
        raise NotImplementedError

    def poison(self, writer: Writer) -> int:
        raise NotImplementedError

    def refuse_run(self, spool: Spool, run: str) -> None:
        """Somebody replaces the run's folder by a link."""
        folder = self.run(run)
        assert folder is not None
        folder.rename(folder.with_name("elsewhere"))
        folder.symlink_to("elsewhere")
        self._blocked.append(folder)

    def limit_bodies(self, size: int) -> None:
        raise NotImplementedError


def in_order(folder: Path) -> None:
    """Hold every record of a run's files against the promise: each writer's are all there, once, and in their order in each file."""
    seen: dict[str, set[int]] = {}
    for name in ("metrics.jsonl", "events.jsonl", "records.jsonl"):
        last: dict[str, int] = {}
        for line in jsonl(folder / name):
            if "seq" in line:
                assert line["seq"] > last.get(line["writer"], 0), f"{name}: out of order, or twice"
                last[line["writer"]] = line["seq"]
                seen.setdefault(line["writer"], set()).add(line["seq"])
    if not (folder / "metrics.csv").exists():
        for writer, seqs in seen.items():
            assert seqs == set(range(1, max(seqs) + 1)), f"records of writer {writer} are missing"


def jsonl(path: Path) -> list[Any]:
    """Return the lines of a file of JSON lines, none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []
