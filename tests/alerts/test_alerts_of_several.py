"""Composed alerts and references with a real agent: across ranks, across runs, against an earlier run; and after everything is killed."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from watching import agree, folder, recorded, wait_for, watch_run

from simspool.agent.alerts.replay import judge
from simspool.agent.cli import main
from simspool.agent.exit_codes import ExitCode
from simspool.sdk import Client, Run
from simspool.spool import RunFolder

NAN = math.nan
RANK = """
import math, sys, time
from simspool.sdk import Run

run = Run.attach(sys.argv[1])
rank = int(sys.argv[2])
for step in range(100_000):
    run.log_metrics({"loss": math.nan if step > 20 * rank else 1.0}, step=step)
    time.sleep(0.01)
"""


def test_two_of_three_ranks_diverge_and_all_are_stopped(start_agent: Any, spool_dir: Path) -> None:
    start_agent()
    run = watch_run()
    run.create_alert("diverged", rule="is not finite", metric="loss")
    run.create_alert("two are lost", source="alerts", when="2 of diverged and not 'never said'", trigger_abort=True)
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(run.id), str(n)]) for n in (1, 2, 99_999)]
    try:
        codes = [rank.wait(60) for rank in ranks]
        assert codes == [-signal.SIGTERM] * 3
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    run.close()
    wait_for(lambda: judge(folder(run)).watched)
    judged = judge(folder(run))
    assert agree(judged)
    (whole,) = [d for d in judged.decisions if d.alert == "two are lost" and d.state == "firing"]
    assert len(whole.inputs["firing"]["diverged"]) == 2
    assert whole.stream == {}


def campaign(name: str, most: int, **options: Any) -> Run:
    """Begin a run of a campaign that is lost when so many of its runs are."""
    run = Run(mode="online", **options)
    run.init(name, folder="/campaign")
    run.config(abort_on_alert="ignore", disable_resources_metrics=True)
    run.create_alert("diverged", rule="is not finite", metric="loss")
    run.create_alert("lost", source="alerts", when=f"{most} of diverged", runs="folder=/campaign", trigger_abort=True)
    return run


def test_three_runs_of_a_campaign_diverge_and_the_fourth_is_stopped(start_agent: Any, spool_dir: Path) -> None:
    called: list[str] = []
    runs = [campaign("c0", 3)]
    runs[0].log_metrics({"loss": NAN})
    runs[0].close()  # before there is an agent
    start_agent()
    runs += [campaign(f"c{n}", 3, abort_callback=lambda _, n=n: called.append(f"c{n}")) for n in range(1, 4)]
    other = Run(mode="online")
    other.init("elsewhere", folder="/other")
    other.create_alert("diverged", rule="is not finite", metric="loss")
    other.log_metrics({"loss": NAN})
    for run in runs[1:]:
        run.log_metrics({"loss": 1.0})
    runs[1].log_metrics({"loss": NAN})
    wait_for(lambda: recorded(runs[1]) == [("diverged", "firing")], 40)
    runs[1].close()  # it has ended; what fired in it counts
    wait_for(lambda: judge(folder(runs[1])).watched, 40)
    assert called == []
    runs[2].log_metrics({"loss": NAN})
    wait_for(lambda: sorted(called) == ["c2", "c3"], 60)
    for run in (runs[2], runs[3], other):
        run.close()
    for run in runs[2:]:
        wait_for(lambda run=run: judge(folder(run)).watched, 40)  # type: ignore[misc]
        judged = judge(folder(run))
        assert agree(judged)
        (lost,) = [d for d in judged.decisions if d.alert == "lost"]
        assert lost.inputs["firing"]["diverged"] == sorted(str(run.id) for run in runs[:3])
    assert [d.alert for d in judge(folder(other)).decisions] == ["diverged"]


def sync() -> None:
    """Run `agent sync` alone; without a server, it judges all the same."""
    done = subprocess.run([sys.executable, "-m", "simspool.agent", "sync"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == ExitCode.NO_TARGET, done.stderr
    assert "cannot be judged" not in done.stderr, done.stderr


def test_a_sync_alone_judges_several_runs_as_well(spool_dir: Path) -> None:
    called: list[int] = []
    runs = [campaign(f"c{n}", 2, abort_callback=lambda _: called.append(1)) for n in range(3)]
    for run in runs[:2]:
        run.log_metrics({"loss": NAN})
    sync()
    assert {alert for alert, _ in recorded(runs[2])} == {"lost"}
    before = recorded(runs[2])
    sync()
    assert recorded(runs[2]) == before  # nothing is noted or decided twice
    wait_for(lambda: len(called) == 3)
    for run in runs:
        run.close()
    assert agree(judge(folder(runs[2])))


def noted(run: RunFolder) -> int:
    """Return how many notes of other runs a run has."""
    from simspool.spool import Kind, Tail
    from simspool.spool.frames import Record

    count = 0
    for writer in run.writer_ids():
        with Tail(run.writer(writer), run.id) as tail:
            for chunk in tail.read():
                count += sum(isinstance(i, Record) and i.kind == Kind.DECISION and "elsewhere" in (i.body or {}) for i in chunk.items)
    return count


def test_an_agent_that_is_killed_in_the_middle_decides_nothing_twice_and_forgets_nothing(start_agent: Any, spool_dir: Path) -> None:
    agent = start_agent()
    runs = [campaign(f"c{n}", 2) for n in range(3)]
    runs[0].create_alert("two ranks", source="alerts", when="2 of diverged", hold=0.2, clear_after=0.1)
    rank = Run.attach(str(runs[0].id))
    rank.config(abort_on_alert="ignore")

    def count(run: Run, alert: str, state: str) -> int:
        return recorded(run).count((alert, state))

    def bad(value: float) -> None:
        runs[0].log_metrics({"loss": value})
        rank.log_metrics({"loss": value})

    bad(NAN)
    runs[1].log_metrics({"loss": NAN})
    wait_for(lambda: count(runs[2], "lost", "firing") == count(runs[0], "two ranks", "firing") == 1, 60)
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    bad(1.0)  # nobody is there
    start_agent()
    wait_for(lambda: count(runs[2], "lost", "resolved") == count(runs[0], "two ranks", "resolved") == 1, 60)
    bad(NAN)
    wait_for(lambda: count(runs[2], "lost", "firing") == 2, 60)
    for run in (rank, *runs):
        run.close()
    for run in runs:
        wait_for(lambda run=run: judge(folder(run)).watched, 60)  # type: ignore[misc]
        judged = judge(folder(run))
        assert agree(judged), ([d.body() for d in judged.missing], judged.surplus)
        assert len(judged.recorded) == len(judged.decisions)
        assert noted(folder(run)) <= 6  # one for each change


# ---------------------------------------------------------------------- references


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site's file of alerts, for every agent of the test."""
    path = tmp_path / "alerts.toml"
    monkeypatch.setenv("SIMSPOOL_ALERTS", str(path))
    return path


FOLLOW = """
[[alerts]]
name = "off course"
rule = "deviates from reference"
metric = "energy"
reference = {reference}
relative_tolerance = 0.05
aggregation = "at least one"
abort = true
where = "name=again*"
"""


def orbit(steps: int = 50) -> str:
    run = Run(mode="online")
    run.init("orbit-3")
    for step in range(steps):
        run.log_metrics({"energy": 100.0 - step}, step=step)
    run.close()
    return str(run.id)


def test_a_run_that_leaves_an_earlier_one_is_stopped_by_the_site_s_rule(start_agent: Any, spool_dir: Path, site: Path) -> None:
    reference = orbit()
    site.write_text(FOLLOW.format(reference='{ run = "orbit-3" }'))
    start_agent()
    called: list[str] = []
    run = Run(mode="online", abort_callback=lambda _: called.append("again"))
    run.init("again")
    run.config(abort_on_alert="ignore", disable_resources_metrics=True)
    for step in range(50):
        run.log_metrics({"energy": 100.0 - step + (10.0 if step > 40 else 0.1)}, step=step)
    wait_for(lambda: called)
    run.close()
    wait_for(lambda: judge(folder(run)).watched)
    judged = judge(folder(run))
    assert agree(judged)
    assert [(d.state, d.inputs["step"]) for d in judged.decisions] == [("firing", 41.0)]
    (kept,) = Client(spool=spool_dir).list_artifacts("again")
    assert (kept["original_path"], kept["category"]) == (f"run {reference}, energy by step", "input")


def test_a_reference_that_is_not_there_is_reported_and_the_other_alerts_are_judged(
    start_agent: Any, spool_dir: Path, site: Path, tmp_path: Path
) -> None:
    golden = tmp_path / "golden.csv"
    golden.write_text("x,value\n0,1\n10,1\n")
    several = FOLLOW.format(reference='{ run = "nobody" }'), FOLLOW.format(reference='{ file = "golden.csv" }').replace("off", "off the")
    site.write_text("".join(several) + '[[alerts]]\nname = "nan"\nmetric = "energy"\nrule = "is not finite"\n')
    start_agent()
    run = Run(mode="online")
    run.init("again")
    run.config(abort_on_alert="ignore", disable_resources_metrics=True)
    run.log_metrics({"energy": NAN}, step=5)
    wait_for(lambda: {alert for alert, _ in recorded(run)} == {"nan", "off the course"})
    run.close()
    said = (tmp_path / "agent.log").read_text()
    assert said.count("no run 'nobody'") == 1
    assert f"{site}, alert 1 ('off course'): reference: " in said


def test_a_sync_alone_takes_references_along(spool_dir: Path, site: Path) -> None:
    orbit()
    site.write_text(FOLLOW.format(reference='{ run = "orbit-3" }'))
    run = Run(mode="offline")
    run.init("again")
    run.log_metrics({"energy": 0.0}, step=3)
    run.close()
    sync()
    assert recorded(run) == [("off course", "firing")]
    assert agree(judge(folder(run)))


def test_the_commands_know_the_new_alerts(spool_dir: Path, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    orbit()
    run = Run(mode="offline")
    run.init("again")
    run.log_metrics({"energy": 0.0}, step=3)
    run.close()

    def agent(*arguments: str, code: int = 0) -> tuple[list[Any], str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["alerts", *arguments, "--json"], prog_name="agent")
        out, err = capsys.readouterr()
        assert (stop.value.code or 0) == code, err
        return [json.loads(line) for line in out.splitlines()], err

    follow = ("add", "again", "--name", "off", "--rule", "deviates from reference", "--metric", "energy", "--from-start")
    assert agent(*follow, "--reference", "orbit-3", "--tolerance", "0.5")[0][0]["added"] is True
    assert agent(*follow, "--reference", "orbit-3", "--tolerance", "0.5")[0][0]["added"] is False
    assert "no file of this name" in agent(*follow, "--reference", "orbit-4", "--tolerance", "0.5", code=9)[1]
    agent("add", "again", "--name", "both", "--when", "off and not other", "--from-start")
    assert "position 8" in agent("add", "again", "--name", "no", "--when", "off and", code=2)[1]
    found = agent("replay", "again", code=1)[0]
    assert {(d["alert"], d["state"]) for d in found[:-1]} == {("both", "firing"), ("off", "firing")}
    site.write_text(FOLLOW.format(reference='{ run = "orbit-3" }') + '[[alerts]]\nname = "c"\nwhen = "all off"\nruns = "folder=/c"\n')
    follows, composed = agent("check", str(site))[0]
    assert follows["alert"]["reference"] == {"run": "orbit-3"}
    assert composed["alert"] == {"when": "all off", "runs": "folder=/c"}
    assert [d["alert"] for d in agent("replay", "again", "--rules", str(site))[0][:-1]] == ["off course"]
