"""Samples are metrics to whoever looks: the spool, the server, the agent's commands say the same of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

from real_server import RealServer, agent

from simspool.sdk import Client
from simspool.spool import Durability, Kind, Spool, Writer, ids

NAMES = ["resources/cpu.usage.memory", "resources/cpu.usage.percentage", "resources/processes.count"]


def record(spool: Spool) -> str:
    raw = ids.new_id()
    run = ids.to_text(raw)
    writer = Writer(spool.run(run).writers, raw, durability=Durability.LAZY)
    assert writer.record(Kind.RUN, {"name": "sampled", "status": "running", "folder": "/", "metadata": {}, "tags": []})
    for n in range(20):
        assert writer.metrics({"loss": n / 2}, step=n)
        values = {NAMES[0]: 100.5 + n, NAMES[1]: 99.0 - n, NAMES[2]: n}
        assert writer.metrics(values, n, kind=Kind.RESOURCES)
    assert writer.metrics({NAMES[2]: 1 << 70, NAMES[1]: math.nan}, 20, kind=Kind.RESOURCES)  # does not fit binary: kind 21
    assert writer.close({"status": "completed"})
    return run


def test_spool_and_server_agree(spool: Spool, server: RealServer) -> None:
    run = record(spool)
    agent("sync", env=server.environment, check=True)
    here = Client(spool=spool.path)
    there = Client(server_url=server.url, server_token=server.token)
    assert sorted(here.get_metrics_names(run)) == sorted(there.get_metrics_names(run)) == sorted(["loss", *NAMES])
    for axis in ("step", "time"):
        found = [client.get_metric_values(["loss", *NAMES], axis, run_ids=[run]) for client in (here, there)]
        assert repr(found[0]) == repr(found[1])
    assert len(here.get_metric_values([NAMES[2]], "step", run_ids=[run])[NAMES[2]]) == 21
    steps = here.get_metric_values([NAMES[0]], "step", run_ids=[run])[NAMES[0]]
    assert list(steps.values()) == [100.5 + n for n in range(20)]


def test_the_agents_commands_show_them(spool: Spool, tmp_path: Path) -> None:
    run = record(spool)
    shown = json.loads(agent("show", run, "--json", check=True).stdout)
    metrics = shown["metrics"]
    assert set(metrics) == {"loss", *NAMES}
    assert metrics[NAMES[0]]["count"] == 20
    assert metrics[NAMES[0]]["last"] == 119.5
    assert metrics[NAMES[2]]["count"] == 21
