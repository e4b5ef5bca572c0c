"""`deviates from reference`: what a curve is made of, its one form, what lies off it, and that it stays with the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simspool.agent.alerts.curves import Curve, curves_of
from simspool.agent.alerts.replay import judge
from simspool.sdk import Client, Run
from simspool.sdk.errors import AlertNotFound
from simspool.sdk.reference import curve_from, curve_from_file, curve_from_run
from simspool.spool import InvalidRecord, RunFolder, RunNotFound, UnreadableFile, alert_definition, open_spool, reference_curve

NAN, INF = math.nan, math.inf
OFF = "deviates from reference"


@pytest.fixture(autouse=True)
def own_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("SIMSPOOL_STATE", str(tmp_path / "state"))
    return tmp_path / "spool"


def begin(name: str) -> Run:
    run = Run(mode="offline", agent="off")
    run.init(name)
    return run


def folder(run: Run) -> RunFolder:
    spool = open_spool(Path(str(run._recording.spool.path)) if run._recording and run._recording.spool else Path())
    return spool.run(str(run.id))


# ---------------------------------------------------------------------- the form


def test_the_form_of_a_curve() -> None:
    points = [(2, 5.0), (0.5, 1), (NAN, 7.0), (INF, 7.0), (2.0, NAN), (-0.0, -INF), (1e300, 0.1)]
    data = reference_curve.encode((float(x), float(v)) for x, v in points)
    assert data == b"0.0,-inf\n0.5,1.0\n2.0,nan\n1e+300,0.1\n"
    xs, values = reference_curve.decode(data)
    assert list(xs) == [0.0, 0.5, 2.0, 1e300]
    assert math.isnan(values[2])


@given(st.dictionaries(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False), min_size=1, max_size=20))
def test_numbers_survive_exactly(points: dict[float, float]) -> None:
    xs, values = reference_curve.decode(reference_curve.encode(points.items()))
    assert dict(zip(xs, values, strict=True)) == points


def test_a_long_curve_is_thinned_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_curve, "MOST_POINTS", 5)
    xs, _ = reference_curve.decode(reference_curve.encode((float(n), 0.0) for n in range(101)))
    assert list(xs) == [0.0, 25.0, 50.0, 75.0, 100.0]


@pytest.mark.parametrize("data", [b"", b"1,2\n1,3\n", b"2,1\n1,1\n", b"nan,1\n", b"1\n", b"a,b\n", b"\xff", b"1,2,3\n"])
def test_what_is_no_curve_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        reference_curve.decode(data)


def test_the_value_at_a_place() -> None:
    curve = Curve(b"0.0,1.0\n2.0,3.0\n3.0,nan\n4.0,inf\n")
    assert [curve.at(x) for x in (-1.0, 0.0, 0.5, 2.0, 2.5, 3.0, 4.0, 5.0, NAN, -INF)] == [None, 1.0, 1.5, 3.0, *[None] * 6]
    assert Curve(b"1.0,2.0\n").at(1.0) == 2.0
    assert Curve(b"-1e308,-1e308\n1e308,1e308\n").at(0.0) is None  # the difference overflows: no number


# ---------------------------------------------------------------------- where it is from


@pytest.mark.parametrize("text", ["x,value\n0,1\n1,2\n", "0;1\n\n# no\n1;2", "\ufeff0 1\n1\t2\n", "0, 1\n1 , 2\n"])
def test_a_file_of_two_columns(text: str, tmp_path: Path) -> None:
    path = tmp_path / "golden.csv"
    path.write_text(text)
    assert curve_from_file(str(path)).data == b"0.0,1.0\n1.0,2.0\n"
    for reference in (path, str(path), {0: 1, 1: 2}, [(0, 1), (1, 2)], iter([(1, 2), (0, 1)])):
        assert curve_from(reference, "x", "step", None).data == b"0.0,1.0\n1.0,2.0\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0,1\n1,x\n", "line 2"), ("0,1,2\n", "line 1"), ("a,b\nc,d\n", "line 2"), ("", "at least one point"), ("x,y\n", "at least one"),
        ("\xff", "no text"), ("nan,3\n", "at least one"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "golden.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidRecord) as error:
        curve_from_file(str(path))
    assert str(path) in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize("given", [3, None, [1, 2], [(1,)], {"a": 1}, [(1, "b")], [(1, 2, 3)], [], {NAN: 1}])
def test_what_is_no_reference_is_refused(given: Any) -> None:
    with pytest.raises(InvalidRecord, match="reference"):
        curve_from(given, "x", "step", None)


def test_a_missing_file_and_a_missing_run(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="none.csv"):
        curve_from(tmp_path / "none.csv", "x", "step", None)
    with pytest.raises(RunNotFound, match="no file of this name either"):
        curve_from("orbit-3", "x", "step", None)


def test_a_run_s_points_by_step_and_by_own_time() -> None:
    first = begin("orbit-3")
    first.log_metrics({"e": 1.0, "other": 9}, step=0, time=10.0)
    first.log_metrics({"e": 2}, step=3, time=NAN)
    first.log_metrics({"e": NAN}, step=1, time=0.5)
    first.log_metrics({"e": True}, step=5, timestamp="2001-01-01T00:00:00")  # recorded as JSON
    other = Run.attach(str(first.id))
    other.log_metrics({"e": 7.0}, step=3, time=11.0)
    other.close()
    first.close()
    run = folder(first)
    assert curve_from_run(run, "e", "step").data == b"0.0,1.0\n1.0,nan\n3.0,7.0\n5.0,1.0\n"
    xs, values = reference_curve.decode(curve_from_run(run, "e", "time").data)
    assert list(xs[-2:]) == [10.0, 11.0]
    assert xs[0] < -7e8  # the time stamp
    assert 0.5 in xs  # NaN is no time: the second has that of its record
    assert len(xs) == 5
    assert 2.0 in values
    with pytest.raises(InvalidRecord, match="no points of 'energy'"):
        curve_from_run(run, "energy", "step")


# ---------------------------------------------------------------------- in a run


def finished_reference() -> str:
    run = begin("orbit-3")
    for step in range(11):
        run.log_metrics({"e": 100.0 - step}, step=step)
    run.close()
    return str(run.id)


def decided(run: Run) -> list[tuple[str, str, Any]]:
    judged = judge(folder(run), now=INF)
    assert not judged.problems
    assert not judged.rules.problems
    return [(d.alert, d.state, d.inputs.get("step", d.inputs.get("time"))) for d in judged.decisions]


def test_a_run_that_leaves_the_curve_of_an_earlier_one() -> None:
    finished_reference()
    run = begin("again")
    given = {"rule": OFF, "metric": "e", "reference": "orbit-3", "relative_tolerance": 0.01, "aggregation": "at least one", "window": 1e-9}
    assert run.create_alert("off", **given)
    for step, value in [(0, 100.9), (2, 98.0), (5, 96.5), (6, 94.0), (20, 1e9), (7, NAN)]:
        run.log_metrics({"e": value}, step=step)
    run.close()
    assert decided(run) == [("off", "firing", 5.0), ("off", "resolved", 6.0), ("off", "firing", 7.0)]
    (first, *_) = judge(folder(run), now=INF).decisions
    assert first.inputs["measured"] == 96.5
    assert first.inputs["reference"] == 95.0
    assert "e deviates from the reference: 96.5 at step 5, where that has 95 (allowed is 0.01 of it)" in first.reason


def test_the_curve_stays_with_the_run_when_the_earlier_one_is_gone(own_spool: Path) -> None:
    import shutil

    reference = finished_reference()
    run = begin("again")
    run.create_alert("off", rule=OFF, metric="e", reference="orbit-3", tolerance=0.5)
    run.log_metrics({"e": 50.0}, step=5)
    run.close()
    shutil.rmtree(own_spool / "runs" / reference)
    assert decided(run) == [("off", "firing", 5.0)]
    (kept,) = Client(spool=own_spool).list_artifacts("again")
    assert kept["category"] == "input"
    assert kept["name"].startswith("reference/")
    assert kept["original_path"] == f"run {reference}, e by step"


def test_an_alert_of_another_run_brings_its_curve_along(own_spool: Path) -> None:
    first = begin("first")
    identity = first.create_alert("off", rule=OFF, metric="e", reference={0: 1, 10: 1}, tolerance=0.5, attach_to_run=False)
    first.close()
    assert decided(first) == []
    second = begin("second")
    assert second.add_alerts(ids=[str(identity)])
    second.log_metrics({"e": 2.0}, step=5)
    second.close()
    assert decided(second) == [("off", "firing", 5.0)]
    for path in own_spool.rglob("?" * 64):
        path.unlink()
    third = begin("third")
    with pytest.raises(AlertNotFound, match="is gone from the spool"):
        third.add_alerts(ids=[str(identity)])
    third.close()


def test_a_curve_that_is_gone_or_damaged_gives_no_verdict_and_is_named() -> None:
    run = begin("again")
    run.create_alert("off", rule=OFF, metric="e", reference={0: 1, 10: 1}, tolerance=0.5)
    run.create_alert("nan", rule="is not finite", metric="e")
    run.log_metrics({"e": NAN}, step=5)
    run.close()
    (blob,) = Path(folder(run).blobs).iterdir()
    data = blob.read_bytes()
    blob.chmod(0o600)
    blob.write_bytes(data + b"20.0,1.0\n")
    with pytest.raises(LookupError, match="damaged"):
        curves_of(folder(run))(blob.name)
    blob.unlink()
    judged = judge(folder(run), now=INF)
    assert [d.alert for d in judged.decisions] == ["nan"]
    assert "its reference cannot be read" in judged.rules.problems["off"]


def test_nothing_is_recorded_of_a_reference_that_is_not_there(own_spool: Path) -> None:
    finished_reference()
    run = begin("again")
    for reference, metric in [("orbit-4", "e"), ("orbit-3", "nothing"), ([], "e"), (3, "e")]:
        with pytest.raises((InvalidRecord, RunNotFound)):
            run.create_alert("off", rule=OFF, metric=metric, reference=reference, tolerance=1)
    run.close()
    client = Client(spool=own_spool)
    assert client.get_alerts("again", critical_only=False) == []
    assert client.list_artifacts("again") == []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tolerance": None}, "above 0"), ({"aggregation": "sum"}, "not summed"), ({"metric": "e*"}, "pattern"),
        ({"hysteresis": 1}, "no use"),
        ({"xaxis": "wall"}, "step, time"), ({"tolerance": -1}, "at least 0"), ({"reference": None}, "needs reference"),
        ({"threshold": 1}, "no use for threshold"), ({"reference": "orbit-3"}, "64 hex digits"),
    ],
)  # fmt: skip
def test_what_a_definition_needs(given: dict[str, Any], says: str) -> None:
    whole = {"rule": OFF, "metric": "e", "reference": "0" * 64, "tolerance": 1.0} | given
    with pytest.raises(InvalidRecord) as error:
        alert_definition.define("off", **whole)
    assert says in str(error.value)


def test_a_disabled_run_reads_nothing() -> None:
    run = Run(mode="disabled")
    run.init("x")
    assert run.create_alert("off", rule=OFF, metric="e", reference="orbit-3", tolerance=1)
