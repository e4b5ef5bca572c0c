"""A real agent that watches, and what it has recorded."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from simspool.agent.alerts.replay import Judged, judge
from simspool.sdk import Run
from simspool.spool import RunFolder, open_spool


def wait_for(true: Callable[[], Any], seconds: float = 20) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def folder(run: Run) -> RunFolder:
    """Return a run's folder."""
    assert run.id
    return open_spool(os.environ["SIMSPOOL_DIR"]).run(run.id)


def recorded(run: Run) -> list[tuple[str, str]]:
    """Return the decisions that are recorded: (alert, state), in order of their moments."""
    bodies = judge(folder(run)).recorded.values()
    return [(b["alert"], b["state"]) for b in sorted(bodies, key=lambda b: (b["at"], b["alert"]))]


def agree(judged: Judged) -> bool:
    """Say whether what was decided live is what is decided by the records."""
    return not judged.missing and not judged.surplus and bool(judged.decisions)


def watch_run(**options: Any) -> Run:
    """Begin a run that samples nothing and is not stopped."""
    run = Run(mode="online", **options)
    run.init("watched")
    run.config(abort_on_alert="ignore", disable_resources_metrics=True)
    return run
