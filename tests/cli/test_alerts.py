"""`agent alerts`: the alerts of runs, a rule more, and judging recorded data again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from simspool.agent.alerts.replay import judge
from simspool.agent.notes import RunNotes
from simspool.spool import Kind, RunFolder, alert_definition, control


def diverged(make: Any, *definitions: dict[str, Any], **closing: str) -> RunFolder:
    """A run whose loss rises from 0 to 9 and ends in NaN."""
    run, writer = make.open()
    for body in definitions:
        writer.record(Kind.ALERT, {**body, "by": "script"})
    for n in range(10):
        writer.metrics({"loss": float(n)})
    writer.metrics({"loss": math.nan})
    writer.close({"status": "completed", **closing})
    assert isinstance(run, RunFolder)
    return run


def judged(make: Any, run: RunFolder) -> None:
    """Record what an agent would have decided."""
    notes = RunNotes(make.spool)
    for decision in judge(run).decisions:
        assert notes.record(run.id, Kind.DECISION, decision.body())
        assert notes.record(run.id, Kind.ALERT_STATE, {"id": decision.rule.id, "alert": decision.alert, "state": "critical"})
    notes.close()


HIGH = alert_definition.define("high", rule="is above", metric="loss", threshold=5.0, aggregation="at least one")


def test_the_alerts_of_a_run_with_their_states_and_reasons(agent: Any, make: Any) -> None:
    quiet = alert_definition.define("quiet", rule="is above", metric="loss", threshold=50.0)
    run = diverged(make, HIGH, quiet)
    judged(make, run)
    result = agent("alerts", "orbit")
    assert result.code == 0
    lines = {line.split()[1]: line for line in result.out.splitlines()[1:]}
    assert "critical" in lines["high"]
    assert "above 5" in lines["high"]
    assert "threshold=50.0" in lines["quiet"]
    high, other = agent("alerts", "list", run.id, "--json").lines
    assert (high["run"], high["alert"], high["state"], other["state"]) == (run.id, "high", "critical", None)
    assert high["definition"]["alert"] == HIGH["alert"]
    assert (agent("alerts", "nowhere").code, agent("alerts", "--wrong").code) == (9, 2)


def test_without_a_run_those_that_live_are_shown(agent: Any, make: Any) -> None:
    diverged(make, HIGH)
    assert agent("alerts").out == ""
    run, writer = make.open("alive")
    writer.record(Kind.ALERT, {**HIGH, "by": "script"})
    (line,) = agent("alerts", "--json").lines
    assert (line["run"], line["alert"]) == (run.id, "high")
    writer.close({"status": "completed"})


def test_replay_says_whether_the_decisions_are_the_recorded_ones(agent: Any, make: Any) -> None:
    run = diverged(make, HIGH)
    result = agent("alerts", "replay", "orbit")
    assert (result.code, result.out.splitlines()[-1]) == (1, "differs: 1 not recorded, 0 recorded only")
    judged(make, run)
    result = agent("alerts", "replay", "orbit")
    assert (result.code, result.out.splitlines()[-1]) == (0, "equal: 1 decision, all recorded")
    decision, summary = agent("alerts", "replay", "orbit", "--json").lines
    assert (decision["kind"], decision["alert"], decision["trigger"][1], decision["recorded"]) == ("decision", "high", 9, True)
    assert summary == {"kind": "summary", "run": run.id, "decisions": 1, "missing": 0, "surplus": 0, "equal": True}
    notes = RunNotes(make.spool)
    assert notes.record(run.id, Kind.DECISION, {**decision, "id": "f" * 32})
    notes.close()
    result = agent("alerts", "replay", "orbit")
    assert (result.code, result.out.splitlines()[-1]) == (1, "differs: 0 not recorded, 1 recorded only")


def test_replay_with_other_rules_compares_with_nothing(agent: Any, make: Any, tmp_path: Path) -> None:
    diverged(make, HIGH)
    rules = tmp_path / "rules.toml"
    rules.write_text('[[alerts]]\nname = "nan"\nmetric = "l*"\nrule = "is not finite"\nwhere = "folder=/elsewhere"\n')
    result = agent("alerts", "replay", "orbit", "--rules", rules)
    assert (result.code, result.out.splitlines()[-1]) == (0, "1 decision by 1 alert")
    decision, summary = agent("alerts", "replay", "orbit", "--rules", rules, "--json").lines
    assert (decision["alert"], decision["recorded"], summary["equal"]) == ("nan", None, None)
    assert agent("alerts", "replay", "orbit", "--rules", tmp_path / "none.toml").code == 2


def test_recorded_decisions_in_the_order_of_their_moments(agent: Any, make: Any) -> None:
    nan = alert_definition.define("nan", rule="is not finite", metric="loss")
    run = diverged(make, nan, HIGH)
    assert (agent("alerts", "decisions", "orbit").code, agent("alerts", "decisions", "orbit", "--json").out) == (0, "")
    judged(make, run)
    assert [d["alert"] for d in agent("alerts", "decisions", "orbit", "--json").lines] == ["high", "nan"]
    assert len(agent("alerts", "decisions", "orbit").out.splitlines()) == 3


def test_an_added_alert_is_a_record_and_judged_with_the_rest(agent: Any, make: Any) -> None:
    run = diverged(make)
    given = ("alerts", "add", "orbit", "--name", "nan", "--metric", "loss", "--rule", "is not finite", "--abort")
    result = agent(*given)
    assert result.code == 0
    assert "only with --from-start" in result.err
    assert judge(run).decisions == []
    assert agent(*given, "--json").lines == [
        {"run": run.id, "id": result_id(agent, run, "nan"), "name": "nan", "since": None, "added": False}
    ]  # fmt: skip
    added = agent("alerts", "add", "orbit", "--name", "all", "--metric", "loss", "--rule", "is above", "--threshold", 8, "--window", 60,
                  "--hold", 0, "--aggregation", "at least one", "--from-start", "--json")  # fmt: skip
    assert (added.lines[0]["since"], added.lines[0]["added"]) == (0.0, True)
    assert [(d.alert, d.trigger[1]) for d in judge(run).decisions] == [("all", 11)]
    assert agent("alerts", "add", "orbit", "--name", "boom", "--pattern", "re:^b[o]+m").code == 0
    kept = control.read_alert(control.alert_file(run, "nan"))
    assert kept is not None
    assert kept["abort"] is True


def result_id(agent: Any, run: RunFolder, name: str) -> str:
    """The id of a run's alert."""
    return next(line["definition"]["id"] for line in agent("alerts", "list", run.id, "--json").lines if line["alert"] == name)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--name", "high", "--metric", "loss", "--rule", "is above", "--threshold", "1"), "already"),
        (("--name", "x", "--metric", "loss", "--rule", "is above"), "threshold"),
        (("--name", "x", "--metric", "loss", "--rule", "is inside range", "--range-low", "2", "--range-high", "1"), "range_low"),
        (("--name", "x", "--pattern", "re:(?=x)"), "look-around"),
        (("--name", "x", "--pattern", "a", "--rule", "is above"), "needs metric"),
        (("--name", "x\ny\0", "--pattern", "a"), "name"),
        (("--name", "x"), "rule"),
    ],
    ids=str,
)
def test_what_is_wrong_with_an_alert_is_said_and_nothing_is_recorded(agent: Any, make: Any, options: tuple[str, ...], says: str) -> None:
    run = diverged(make, HIGH)
    before = run.writer_ids()
    result = agent("alerts", "add", "orbit", *options)
    assert result.code == 2
    assert says in result.err
    assert run.writer_ids() == before


def test_a_sites_file_is_checked(agent: Any, tmp_path: Path) -> None:
    good = tmp_path / "alerts.toml"
    first = '[[alerts]]\nname = "a"\npattern = "ERROR"\n'
    good.write_text(first + '[[alerts]]\nname = "b"\nrule = "no progress"\nwindow = 600\nwhere = "tag=x"\n')
    result = agent("alerts", "check", good)
    assert result.code == 0
    assert "tag=x" in result.out
    assert [line["where"] for line in agent("alerts", "check", good, "--json").lines] == ["", "tag=x"]
    bad = tmp_path / "bad.toml"
    bad.write_text('[[alerts]]\nname = "a"\nrule = "is above"\nmetric = "x"\ntreshold = 3\n')
    result = agent("alerts", "check", bad)
    assert result.code == 2
    for part in (str(bad), "alert 1", "'a'", "treshold"):
        assert part in result.err


def test_hostile_names_and_reasons_cannot_steer_the_terminal(agent: Any, make: Any) -> None:
    run, writer = make.open("evil\x1b[2J")
    writer.record(Kind.ALERT, {"id": "i", "name": "a\x1b]0;x\x07", "source": "user", "alert": {"x": "\x1b"}})
    odd = {"id": "1" * 32, "alert": "a\x1b", "state": "\x1b", "at": "soon", "stream": {"metric": "\x1b"}, "reason": 5}
    writer.record(Kind.DECISION, odd)
    writer.close({"status": "completed"})
    for command in (("list",), ("decisions",), ("replay",)):
        result = agent("alerts", *command, run.id)
        assert "\x1b" not in result.out + result.err
    assert json.loads(agent("alerts", "decisions", run.id, "--json").out)["at"] == "soon"
