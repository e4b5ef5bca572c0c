"""Alerts as a script defines them: ids, checks, one definition a name, other runs' alerts, states set by hand."""

from __future__ import annotations

import inspect
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simspool.sdk import AlertNotFound, NotInitialised, Run, RunClosed
from simspool.spool import InvalidRecord, alert_definition, control, ids, open_spool

ABOVE = {"rule": "is above", "metric": "loss", "threshold": 3}


@pytest.fixture
def run() -> Any:
    with Run(mode="offline") as run:
        run.init("r")
        yield run


def test_the_record_says_what_was_defined(run: Run, found: Any) -> None:
    identity = run.create_alert(
        "Loss", "metrics", "too much", 2, 60, "is outside range", "loss*", None, 0, 1, "all", "email", None, True,
        hold=3, hysteresis=0.25, clear_after=7,
    )  # fmt: skip
    assert identity is not None
    assert ids.is_id(identity)
    assert found().only("alert") | {"kind": 0, "writer": 0, "seq": 0} == {
        "kind": 0, "writer": 0, "seq": 0, "id": identity, "name": "Loss", "source": "metrics", "abort": True, "notification": "email",
        "by": "script", "description": "too much",
        "alert": {
            "rule": "is outside range", "metric": "loss*", "range_low": 0.0, "range_high": 1.0, "aggregation": "all", "window": 60.0,
            "frequency": 2.0, "hold": 3.0, "hysteresis": 0.25, "clear_after": 7.0,
        },
    }  # fmt: skip


def test_the_arguments_come_in_the_published_order() -> None:
    order = list(inspect.signature(Run.create_alert).parameters)[1:15]
    assert order == [
        "name", "source", "description", "frequency", "window", "rule", "metric", "threshold", "range_low", "range_high", "aggregation",
        "notification", "pattern", "trigger_abort",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "given", "definition"),
    [
        ("alert", ABOVE, {"rule": "is above", "metric": "loss", "threshold": 3.0}),
        ("alert", {**ABOVE, "threshold": 0}, {"rule": "is above", "metric": "loss", "threshold": 0.0}),
        ("alert", {**ABOVE, "threshold": -math.inf}, {"rule": "is above", "metric": "loss", "threshold": -math.inf}),
        ("alert", {**ABOVE, "threshold": np.float32(0.5)}, {"rule": "is above", "metric": "loss", "threshold": 0.5}),
        ("alert", {"rule": "is not finite", "metric": "*"}, {"rule": "is not finite", "metric": "*"}),
        ("alert", {"rule": "no progress", "window": 30}, {"rule": "no progress", "window": 30.0}),
        ("alert", {"rule": "no progress", "metric": "m"}, {"rule": "no progress", "metric": "m"}),
        ("alert", {**ABOVE, "rule": "rate is above"}, {"rule": "rate is above", "metric": "loss", "threshold": 3.0}),
        ("alert", {"source": "events", "pattern": "re:^dis[ck] \\d+%"}, {"pattern": "re:^dis[ck] \\d+%"}),
        ("alert", {"source": "user"}, {}),
        ("event_alert", {"pattern": "boom", "frequency": 2}, {"pattern": "boom", "frequency": 2.0}),
        ("user_alert", {}, {}),
        ("metric_threshold_alert", ABOVE, {"rule": "is above", "metric": "loss", "threshold": 3.0, "window": 1.0}),
        (
            "metric_threshold_alert",
            {**ABOVE, "frequency": 5},
            {"rule": "is above", "metric": "loss", "threshold": 3.0, "frequency": 5.0},
        ),
        (
            "metric_range_alert",
            {"metric": "m", "range_low": 1, "range_high": 2, "rule": "is inside range", "window": 3},
            {"rule": "is inside range", "metric": "m", "range_low": 1.0, "range_high": 2.0, "window": 3.0},
        ),
    ],
)
def test_what_has_its_default_is_left_out(
    run: Run, found: Any, method: str, given: dict[str, Any], definition: dict[str, Any]
) -> None:  # fmt: skip
    assert getattr(run, f"create_{method}")("a", **given) is not None
    assert found().only("alert")["alert"] == definition


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs a rule"),
        ({"rule": "is aboev"}, "rule must be one of is above"),
        ({"rule": "is above", "metric": "m"}, "needs threshold: add threshold="),
        ({"rule": "is above", "threshold": 1}, "needs metric"),
        ({**ABOVE, "range_low": 1}, "has no use for range_low: leave range_low=1.0 out"),
        ({**ABOVE, "pattern": "x"}, "has no use for pattern"),
        ({**ABOVE, "threshold": math.nan}, "threshold must be a number, not NaN"),
        ({**ABOVE, "threshold": "3"}, "threshold must be a real number"),
        ({**ABOVE, "threshold": True}, "threshold must be a real number"),
        ({**ABOVE, "window": 0}, "window must be a number of seconds above 0"),
        ({**ABOVE, "window": math.inf}, "window must be a number of seconds"),
        ({**ABOVE, "frequency": -1}, "frequency must be"),
        ({**ABOVE, "hold": -1}, "hold must be a number of at least 0"),
        ({**ABOVE, "hysteresis": -0.1}, "hysteresis must be"),
        ({**ABOVE, "clear_after": "x"}, "clear_after must be"),
        ({**ABOVE, "aggregation": "median"}, "aggregation must be one of average"),
        ({**ABOVE, "notification": "sms"}, "notification must be one of none, email"),
        ({**ABOVE, "trigger_abort": 1}, "trigger_abort must be True or False"),
        ({**ABOVE, "description": 1}, "description must be text"),
        ({**ABOVE, "metric": ""}, "metric must be text"),
        ({"source": "metric"}, "source must be one of metrics, events, user"),
        ({"source": "events"}, "needs pattern"),
        ({"source": "events", "pattern": ""}, "pattern must be text"),
        ({"source": "events", "pattern": "re:("}, "is not a regular expression"),
        ({"source": "events", "pattern": r"re:(a)\1"}, r"back reference \\1"),
        ({"source": "events", "pattern": "re:a(?=b)"}, "look-around"),
        ({"source": "events", "pattern": "re:(?<!b)a"}, "look-around"),
        ({"source": "events", "pattern": "re:a{2000}"}, "repetition"),
        ({"source": "events", "pattern": "x", "rule": "is above"}, "no use for rule"),
        ({"source": "user", "frequency": 1}, "no use for frequency"),
        ({"rule": "is inside range", "metric": "m", "range_low": 2, "range_high": 2}, "range_low must be below range_high"),
        ({"rule": "is outside range", "metric": "m", "range_low": 0, "range_high": 1, "hysteresis": 0.6}, "leaves nothing of the range"),
        ({"rule": "no progress", "frequency": 1}, "no use for frequency"),
        ({"rule": "is not finite", "metric": "m", "window": 9}, "no use for window"),
        ({"rule": "is not finite", "metric": "m", "aggregation": "sum"}, "no use for aggregation"),
        ({"rule": "rate is above", "metric": "m", "threshold": 1, "aggregation": "sum"}, "no use for aggregation"),
    ],
)
def test_mistakes_are_named_and_record_nothing(run: Run, found: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRecord, match=message):
        run.create_alert("a", **given)
    assert found().of("alert") == []


@pytest.mark.parametrize("name", ["", "a\n\x1b", "a*", 3, None, "x" * 1025])
def test_a_bad_name_is_refused(run: Run, name: Any) -> None:
    with pytest.raises(InvalidRecord, match="alert name"):
        run.create_alert(name, **ABOVE)


@pytest.mark.parametrize(
    "expression",
    [
        r"a\.b", "(?=a)", "(?<!x)y", r"(a)\1", r"[\1]", "a++", r"\+\+", "a{2}+", "(?P<n>a)(?P=n)", "(?i)x", "(?x) a", "[(?=]",
        "[]a(?=]", r"x\Z", "(?#c)x", "a{1000}", "a{2,1001}", "(?i:x)", r"\bfoo\b", r"\A\d+", "(?>a)",
        r"\x41", r"\u0041", "(?:a|b)*?c", r"\s+\S",
        "(?-i:x)",
        "(?a)x", "é+", "^$", "(?s).", "a|b", r"\\(?:x)", r"\\Z", "[^]x]", r"[\]](?!a)",
    ],
)  # fmt: skip
def test_expressions_are_judged_as_re2_judges_them(expression: str) -> None:
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(expression, options)
    except re2.error:
        with pytest.raises(InvalidRecord):
            alert_definition.define("a", "events", pattern="re:" + expression)
    else:
        assert alert_definition.define("a", "events", pattern="re:" + expression)


# ---------------------------------------------------------------------- one name, one definition


def test_the_id_is_of_the_definition_and_the_same_everywhere(run: Run, found: Any) -> None:
    first = run.create_alert("a", **ABOVE)
    assert first == run.create_alert("a", description="in other words", **{**ABOVE, "threshold": 3.0}, window=5.0)
    assert len(found().of("alert")) == 1
    with Run(mode="offline") as other:
        other.init("other")
        assert other.create_alert("a", **ABOVE) == first
        assert other.create_alert("b", **ABOVE) != first
    with Run(mode="disabled") as off:
        off.init("off")
        assert off.create_alert("a", **ABOVE) == first
        assert off.add_alerts(names=["anything"])
        assert off.log_alert(name="anything")
    assert alert_definition.define("a", "metrics", **ABOVE)["id"] == first


def test_a_second_definition_of_a_name_is_an_error_that_shows_both(run: Run, found: Any) -> None:
    run.create_alert("a", **ABOVE)
    with pytest.raises(InvalidRecord, match=r"threshold=3.0; not .*threshold=4.0"):
        run.create_alert("a", **{**ABOVE, "threshold": 4})
    with pytest.raises(InvalidRecord, match="not .*trigger_abort=True"):
        run.create_alert("a", **ABOVE, trigger_abort=True)
    assert len(found().of("alert")) == 1


def test_also_from_another_process_of_the_run(run: Run, script: Any, found: Any) -> None:
    run.create_alert("a", **ABOVE)
    done = script("""
        import sys
        from simspool.sdk import Run
        from simspool.spool import InvalidRecord
        run = Run.attach(sys.argv[1], mode="offline")
        same = dict(rule="is above", metric="loss")
        print(run.create_alert("a", threshold=3, **same))
        try:
            run.create_alert("a", threshold=4, **same)
        except InvalidRecord as error:
            print(error)
    """, run.id or "")  # fmt: skip
    identity, error = done.stdout.splitlines()
    assert identity == run.create_alert("a", **ABOVE)
    assert "this run has an alert 'a' already" in error
    assert {a["id"] for a in found().of("alert")} == {identity}


# ---------------------------------------------------------------------- alerts of other runs


def test_alerts_are_used_in_other_runs_by_id_and_name(run: Run, found: Any) -> None:
    first = run.create_alert("a", **ABOVE)
    kept = run.create_alert("kept", "events", pattern="boom", attach_to_run=False)
    assert first is not None
    assert kept is not None
    assert [a["name"] for a in found().of("alert")] == ["a"]
    with Run(mode="offline") as other:
        other.init("other")
        assert other.add_alerts(ids=[first], names=["kept", "a"])
        assert other.add_alerts([first], ["kept"])
    assert {(a["id"], a["name"]) for a in found(other.id).of("alert")} == {(first, "a"), (kept, "kept")}
    assert len(found(other.id).of("alert")) == 2


def test_unknown_and_ambiguous_alerts_are_named(run: Run) -> None:
    with pytest.raises(AlertNotFound, match="no alert named 'nobody'"):
        run.add_alerts(names=["nobody"])
    unknown = ids.to_text(ids.new_id())
    with pytest.raises(AlertNotFound, match=unknown):
        run.add_alerts(ids=[unknown])
    with pytest.raises(AlertNotFound, match="not an id"):
        run.add_alerts(ids=["../../x"])
    for wrong in ("a", [1]):
        with pytest.raises(InvalidRecord, match="ids must be a list"):
            run.add_alerts(ids=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidRecord, match="give ids"):
        run.add_alerts()
    both = [run.create_alert("a", **{**ABOVE, "threshold": n}, attach_to_run=False) for n in (1, 2)]
    with pytest.raises(AlertNotFound) as error:
        run.add_alerts(names=["a"])
    assert all(str(i) in str(error.value) for i in both)


# ---------------------------------------------------------------------- states


def test_the_state_of_a_users_alert_is_set_by_id_or_name(run: Run, found: Any) -> None:
    identity = run.create_user_alert("mine")
    assert run.log_alert(identity, "critical")
    assert run.log_alert(name="mine", state="ok")
    assert run.log_alert(name="mine")
    assert [(a["id"], a["alert"], a["state"]) for a in found().of("alert-state")] == [
        (identity, "mine", "critical"), (identity, "mine", "ok"), (identity, "mine", "critical")
    ]  # fmt: skip
    assert not run.abort_requested


def test_states_are_for_users_alerts_of_this_run(run: Run) -> None:
    ruled = run.create_alert("ruled", **ABOVE)
    run.create_user_alert("apart", attach_to_run=False)
    with pytest.raises(InvalidRecord, match="judged by its rule"):
        run.log_alert(ruled, "ok")
    with pytest.raises(AlertNotFound, match="apart"):
        run.log_alert(name="apart")
    with pytest.raises(InvalidRecord, match="state must be one of ok, critical"):
        run.log_alert(name="ruled", state="bad")  # type: ignore[arg-type]
    for both in ({}, {"identifier": "a", "name": "b"}):
        with pytest.raises(InvalidRecord, match="say which alert"):
            run.log_alert(**both)


def test_another_process_of_the_run_sets_the_state_too(run: Run, script: Any, found: Any) -> None:
    run.create_user_alert("mine")
    done = script("""
        import sys
        from simspool.sdk import Run
        run = Run.attach(sys.argv[1], mode="offline")
        print(run.log_alert(name="mine"))
    """, run.id or "")  # fmt: skip
    assert done.stdout == "True\n", done.stderr
    assert found().only("alert-state")["state"] == "critical"


def test_a_critical_alert_that_aborts_stops_the_run_where_no_agent_is(script: Any, found: Any) -> None:
    done = script("""
        import time
        from simspool.sdk import Run
        run = Run()
        run.config(abort_on_alert="run")
        run.init("r")
        run.create_user_alert("mine", trigger_abort=True)
        run.log_alert(name="mine", state="ok")
        assert not run.abort_requested
        run.log_alert(name="mine")
        while not run.is_closed:
            time.sleep(0.01)
    """)
    assert done.returncode == 0, done.stderr
    spool = open_spool(os.environ["SIMSPOOL_DIR"])
    (request,) = control.requests(spool.run(spool.run_ids()[0]))
    assert (request.by, request.alert, request.reason) == ("script", "mine", "alert mine is critical")
    assert found().only("close")["status"] == "terminated"


def test_calls_outside_a_run_raise() -> None:
    run = Run(mode="offline")
    for call in (lambda: run.create_user_alert("a"), lambda: run.add_alerts(names=["a"]), lambda: run.log_alert(name="a")):
        with pytest.raises(NotInitialised):
            call()
    run.init("r")
    run.close()
    with pytest.raises(RunClosed):
        run.create_user_alert("a")


def test_suppressed_mistakes_answer_none_and_make_the_run_dormant(capsys: pytest.CaptureFixture[str]) -> None:
    with Run(mode="offline") as run:
        run.config(suppress_errors=True)
        run.init("r")
        assert run.create_alert("a") is None
        assert run.create_alert("a", **ABOVE) is None
        assert run.add_alerts(names=["a"]) is False
    assert "needs a rule" in capsys.readouterr().err


def test_a_full_disk_is_an_answer_and_no_error(script: Any) -> None:
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs `unshare -Urm`: a full disk is NOT tested here")
    place = Path("full")
    place.mkdir()
    done = script(
        """
        import os
        from simspool.sdk import Run
        run = Run(mode="offline")
        run.init("full")
        with open("full/filler", "wb", buffering=0) as f:
            try:
                while True:
                    f.write(b"x" * 4096)
            except OSError:
                pass
        made = [run.create_user_alert(f"alert {i}", description="d" * 4000) for i in range(100)]
        assert made[0] is not None and made[-1] is None
        assert run.drops["disk-full"] >= made.count(None), run.drops
        assert run.abort("no space") in (True, False)
        run.close()
        print("went on")
        """,
        prefix=("unshare", "-Urm", "bash", "-c", 'mount -t tmpfs -o size=1m none full && exec "$@"', "-"),
        SIMSPOOL_DIR=str(place.absolute() / "spool"),
    )
    assert done.returncode in {0, -15}, done.stderr
    assert "Traceback" not in done.stderr
