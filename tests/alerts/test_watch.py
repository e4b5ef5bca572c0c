"""The watch of a real agent: what it decides is what a replay of the records decides, whenever it came and whatever killed it."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from watching import agree, folder, recorded, wait_for, watch_run

from simspool.agent.alerts.replay import judge
from simspool.sdk import Run
from simspool.spool import Kind, RunFolder, control, open_spool

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_a_bad_value_after_a_good_one_and_then_silence_is_seen(start_agent: Any, spool_dir: Path) -> None:
    start_agent()
    for number in range(3):
        run = watch_run()
        run.create_alert("high", rule="is above", metric="loss", threshold=0, aggregation="at least one")
        time.sleep(0.1 * number)
        run.log_metrics({"loss": -1.0})
        time.sleep(0.001)
        run.log_metrics({"loss": 1e-300})
        wait_for(lambda run=run: recorded(run) == [("high", "firing")])  # type: ignore[misc]
        run.close()


def test_what_is_decided_live_is_what_the_records_decide(start_agent: Any, spool_dir: Path) -> None:
    agent = start_agent()
    run = watch_run()
    run.create_alert("mean", rule="is above", metric="loss", threshold=2.0, window=0.2)
    run.create_alert("nan", rule="is not finite", metric="*", hold=0.3, clear_after=0.2)
    run.create_alert("still", rule="no progress", metric="loss", window=0.4)
    run.create_alert("word", source="events", pattern="re:diverg(ed|ing)", clear_after=0.3)
    other = Run.attach(run.id)
    for i in range(60):
        run.log_metrics({"loss": 1.0 if i < 30 else 4.0, "other": math.nan if 10 < i < 40 else 0.0})
        other.log_metrics({"loss": 5.0 if i % 20 == 3 else 0.0}, time=i / 100)
        if i == 20:
            run.log_event("it is diverging")
            agent.send_signal(signal.SIGKILL)  # in the middle: the next one decides nothing anew, and loses nothing
            agent.wait()
            agent = start_agent()
        time.sleep(0.02)
    time.sleep(1.2)
    other.close()
    run.log_metrics({"loss": 1.0})
    run.close()
    wait_for(lambda: judge(folder(run)).watched)
    judged = judge(folder(run))
    assert agree(judged), ([d.body() for d in judged.missing], judged.surplus)
    assert {a for a, _ in recorded(run)} == {"mean", "nan", "still", "word"}
    assert len(judged.recorded) == len(judged.decisions)  # each once


def test_an_agent_that_comes_late_decides_the_same_and_aborts_who_is_still_there(start_agent: Any, spool_dir: Path, tmp_path: Path) -> None:
    called: list[float] = []
    run = watch_run(abort_callback=lambda _: called.append(time.monotonic()))
    run.create_alert("nan", rule="is not finite", metric="loss", trigger_abort=True)
    run.log_metrics({"loss": math.nan})
    ended = watch_run()
    ended.create_alert("nan", rule="is not finite", metric="loss", trigger_abort=True)
    ended.log_metrics({"loss": math.nan})
    ended.close()
    start_agent()
    wait_for(lambda: called)
    wait_for(lambda: recorded(ended) == [("nan", "firing")])
    assert not control.requests(folder(ended))  # nobody is left to be stopped
    run.close()
    assert len(called) == 1


def test_an_alert_that_another_process_adds_judges_from_then_on(start_agent: Any, spool_dir: Path) -> None:
    start_agent()
    run = watch_run()
    for _ in range(20):
        run.log_metrics({"loss": 9.0})
    helper = Run.attach(run.id)
    helper.create_alert("high", rule="is above", metric="loss", threshold=3.0)
    time.sleep(0.3)
    assert recorded(run) == []
    run.log_metrics({"loss": 9.0})
    wait_for(lambda: recorded(run) == [("high", "firing")])
    helper.close()
    run.close()
    wait_for(lambda: judge(folder(run)).watched)
    assert agree(judge(folder(run)))


def test_resources_are_judged_like_any_metric(start_agent: Any, spool_dir: Path) -> None:
    start_agent()
    run = watch_run()
    run.config(disable_resources_metrics=False, resources_metrics_interval=1)
    run.create_alert("disk", rule="is above", metric="resources/disk.left", threshold=0, aggregation="at least one")
    run.create_alert("memory", rule="is below", metric="resources/memory.left", threshold=1, window=2)
    # the agent's samples are a stream of the host; those that the script took before are one of its writer
    wait_for(lambda: any("host" in body["stream"] for body in judge(folder(run)).recorded.values()), 30)
    run.close()
    wait_for(lambda: judge(folder(run)).watched)
    assert agree(judge(folder(run)))
    assert set(recorded(run)) == {("disk", "firing")}


def test_a_stopped_agent_has_lost_nothing_when_it_goes_on(start_agent: Any, spool_dir: Path) -> None:
    agent = start_agent()
    run = watch_run()
    run.create_alert("high", rule="is above", metric="loss", threshold=3.0, window=1)
    run.log_metrics({"loss": 1.0}, time=0.0)
    agent.send_signal(signal.SIGSTOP)
    for i in range(5000):
        run.log_metrics({"loss": 9.0 if 2000 < i < 2100 else 1.0}, time=i * 0.01)
    agent.send_signal(signal.SIGCONT)
    wait_for(lambda: len(recorded(run)) == 2)
    run.close()
    assert recorded(run) == [("high", "firing"), ("high", "resolved")]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare for an empty network namespace")
def test_a_simulation_that_diverges_is_stopped_with_a_checkpoint_and_no_network(spool_dir: Path, tmp_path: Path) -> None:
    script = f"""
    {sys.executable} -m simspool.agent run & agent=$!
    until ls {spool_dir}/agent/hosts/*.json; do sleep 0.05; done
    {sys.executable} {EXAMPLES / "diverging.py"} --checkpoint {tmp_path / "plate.npz"}
    echo "status $?"
    kill $agent; wait $agent
    """
    done = subprocess.run(["unshare", "-n", "bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "status 143" in done.stdout, done.stdout + done.stderr  # SIGTERM
    spool = open_spool(spool_dir)
    run = spool.run(spool.run_ids()[0])
    judged = judge(run)
    assert [d.alert for d in judged.decisions] == ["diverged", "diverged"]  # both metrics
    assert agree(judged)
    import numpy as np

    plate = np.load(tmp_path / "plate.npz")
    assert np.isfinite(plate["field"]).all()
    assert plate["step"] > 2000
    steps = [item for w in run.writer_ids() for item in records(run, w) if item.kind == Kind.STATUS]
    assert steps[-1].body["status"] == "terminated"
    assert "diverged" in steps[-1].body["reason"]


def records(run: RunFolder, writer: str) -> list[Any]:
    """Return a writer's JSON records."""
    from simspool.spool import Tail
    from simspool.spool.frames import Record

    with Tail(run.writer(writer), run.id) as tail:
        return [item for chunk in tail.read() for item in chunk.items if isinstance(item, Record)]
