"""What is recorded of a command: metrics, events, output, how it ended; and what is refused before anything begins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from executing import Place, group_of, until

from simspool.agent.execute import conditions
from simspool.agent.execute.complaints import Complaints
from simspool.agent.execute.kept import KeptOutput
from simspool.spool import InvalidRecord


def test_metrics_events_and_the_command_itself(place: Place) -> None:
    lines = "echo 'step 1 loss=0.5 T=3.0D+02'; echo noise; echo 'step 2 loss=nan T=4d2'"
    script = f"{lines}; printf 'WARNING: steep'; echo 'broken: 3' >&2; exit 4"
    options = ["--name", "solve", "--folder", "/a/b", "--tag", "x", "--tag", "y", "--meta", "n=3", "--meta", "kind=test"]
    options += ["--metric", r"step (?P<step>\d+) loss=(?P<loss>\S+) T=(?P<T>\S+)", "--event", "^WARNING", "--description", "words"]
    place.run(*options, "--", "sh", "-c", script, code=4)
    shown = place.show("solve")
    assert (shown["status"], shown["reason"], shown["folder"], shown["tags"]) == ("failed", "exit code 4", "/a/b", ["x", "y"])
    assert {key: shown["metadata"][key] for key in ("n", "kind", "cwd")} == {"n": 3, "kind": "test", "cwd": str(place.cwd)}
    assert place.metrics() == [(1, {"loss": 0.5, "T": 300.0}), (2, {"loss": "NaN", "T": 400.0})]
    assert sorted(place.events()) == ["WARNING: steep", "broken: 3"]
    (started,), (exited,) = place.bodies("process-start"), place.bodies("process-exit")
    assert started["command"] == ["sh", "-c", script]
    assert exited["code"] == 4
    assert all(started[key] == exited[key] for key in ("pid", "start_ticks", "boot_id", "pid_namespace", "host"))
    (close,) = place.bodies("close")
    assert close["status"] == "failed"
    assert not any(close["drops"].values())


def test_a_traceback_is_one_event_and_the_last_words_of_a_flood_are_there(place: Place) -> None:
    flood = "import sys\nfor n in range(5000):\n    print('line', n, file=sys.stderr, flush=True)\n1 / 0\n"
    place.run("--", sys.executable, "-S", "-c", flood, code=1)
    events = place.events()
    assert len(events) < 300
    assert "ZeroDivisionError: division by zero" in events[-1]
    assert place.artifact("stderr").count(b"\n") >= 5003


def test_a_progress_bar_is_one_event(place: Place) -> None:
    place.run("--", "sh", "-c", r"printf '10%%\r' >&2; printf '50%%\r100%% done\n' >&2; printf 'after\n' >&2")
    assert "\n".join(place.events()).split("\n") == ["100% done", "after"]


def test_bounds_of_events() -> None:
    said: list[str] = []
    now = [0.0]
    complaints = Complaints(said.append, lambda: now[0])
    for n in range(150):
        complaints.read(b"line %d\n" % n)
        complaints.pause()
    assert said == [f"line {n}" for n in range(100)]
    now[0] = 60.0
    complaints.read(b"later\n")
    complaints.pause()
    assert said[100:] == ["[50 lines on stderr are no events: too many at once]", "later"]
    complaints.read(b"x" * 300_000)
    complaints.end()
    assert len(said[-1]) <= 16 << 10
    assert complaints.left_out == 50


@pytest.mark.parametrize(("limit", "size"), [(1000, 999), (1000, 1000), (1000, 1001), (1000, 5000), (1, 10), (7, 100)])
def test_what_is_kept_is_the_first_and_the_last_part(tmp_path: Path, limit: int, size: int) -> None:
    data = bytes(n % 251 for n in range(size))
    (tmp_path / "run").mkdir()
    kept = KeptOutput(str(tmp_path / "run"), limit)
    for at in range(0, size, 13):
        kept.read(data[at : at + 13])
    file = kept.file()
    assert file is not None
    found = os.pread(file.fileno(), size + 1000, 0)
    if size <= limit:
        assert found == data
    else:
        head, tail = limit - limit // 2, limit // 2
        middle = found[head : len(found) - tail]
        assert found == data[:head] + middle + data[size - tail :]
        assert f"[... {size - limit:,} bytes are left out here" in middle.decode()
    assert list((tmp_path / "run").iterdir()) == []
    kept.close()


def test_keep_output_bounds_and_forgoes(place: Place) -> None:
    place.run("--name", "some", "--keep-output", "1K", "--", "sh", "-c", "head -c 100000 /dev/zero; echo words >&2")
    assert 1024 < len(place.artifact("stdout", run_id(place, "some"))) < 1200
    place.run("--name", "none", "--keep-output", "0", "--", "echo", "x")
    assert place.bodies("artifact", "none") == []


def run_id(place: Place, name: str) -> str:
    return str(place.show(name)["id"])


def test_a_followed_log_gives_what_this_command_wrote(place: Place) -> None:
    log = place.cwd / "log.txt"
    log.write_text("x=1\nx=2\n")
    write = "echo x=3 >> log.txt; mv log.txt log.txt.1; printf 'x=4\\nx=5' > log.txt"
    place.run("--name", "new", "--metric", r"x=(?P<x>\d+)", "--follow", "log.txt", "--", "sh", "-c", write)
    assert [values["x"] for _, values in place.metrics("new")] == [3, 4, 5]
    place.run("--name", "again", "--metric", r"x=(?P<x>\d+)", "--follow", "log.txt", "--", "sh", "-c", "printf 'x=4\\nx=5' > log.txt")
    assert [values["x"] for _, values in place.metrics("again")] == [4, 5]


def test_what_a_program_prints_and_logs_counts_once(place: Place) -> None:
    tee = ("sh", "-c", "for i in 1 2 3; do echo x=$i; echo x=$i >> log.txt; done")
    options = ("--metric", r"x=(?P<x>\d+)", "--follow", "log.txt")
    place.run("--name", "log", *options, "--", *tee)
    assert [values["x"] for _, values in place.metrics("log")] == [1, 2, 3]
    (place.cwd / "log.txt").unlink()
    place.run("--name", "both", *options, "--follow", "-", "--", *tee)
    assert sorted(values["x"] for _, values in place.metrics("both")) == [1, 1, 2, 2, 3, 3]


def test_a_script_inside_records_into_the_same_run(place: Place) -> None:
    inside = "from simspool.sdk import Run\nwith Run.attach() as run: run.log_metrics({'inner': 1.0})"
    place.run("--name", "outer", "--", sys.executable, "-c", inside)
    assert place.metrics("outer") == [(0, {"inner": 1.0})]
    assert place.show("outer")["status"] == "completed"
    place.run("--run", "outer", "--rank", "3", "--", "echo", "more")
    assert place.artifact("stdout.3", run_id(place, "outer")) == b"more\n"


def test_json_says_at_the_end_what_became_of_it(place: Place) -> None:
    done = place.run("--json", "--", "sh", "-c", "exit 3", code=3)
    line = next(line for line in done.stderr.decode().splitlines() if line.startswith("{"))
    assert f'"run": "{place.only_run()}"' in line
    assert '"status": "failed", "code": 3' in line


REFUSED: list[tuple[list[str], str]] = [
    (["--metric", "loss=(?P<x>a"], "       ^"),
    (["--metric", "loss=(a)"], "no group in it has a name"),
    (["--event", "["], "missing ]"),
    (["--abort-when", "x is big 3"], "is no condition"),
    (["--abort-when", "x is above"], "takes one number"),
    (["--alert-when", "x is outside range 3 1"], "range_low must be below"),
    (["--meta", "novalue"], "is not KEY=VALUE"),
    (["--folder", "relative"], "must be text that begins with '/'"),
    (["--name", "a|b"], "run name"),
    (["--input", "nothing.txt"], "there is no such file"),
    (["--follow", "x.log"], "--follow needs --metric or --event"),
    (["--alerts", "nothing.toml"], "cannot be read"),
    (["--keep-output", "lots"], "is not a size"),
    (["--rank", "1"], "give --run as well"),
    (["--run", "a", "--name", "b"], "leave these options out"),
    (["--settle", "-1"], "not in the range"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: value[0][2:] if isinstance(value, list) else "")
def test_mistakes_are_refused_before_anything_is_begun(
    place: Place, options: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from simspool.agent.cli import main

    monkeypatch.chdir(place.cwd)
    with pytest.raises(SystemExit) as stopped:
        main(["exec", *options, "--", "touch", "begun"], prog_name="agent")
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert list(place.cwd.iterdir()) == []
    assert not place.spool.exists()


def test_a_run_to_join_that_is_not_there_is_refused(place: Place) -> None:
    place.run("--name", "there", "--", "true")
    done = place.run("--run", "nowhere", "--", "touch", "begun", code=9)
    assert b"no run 'nowhere'" in done.stderr
    assert not (place.cwd / "begun").exists()


@pytest.mark.parametrize(
    ("text", "name", "definition"),
    [
        ("residual is not finite", "residual is not finite", {"metric": "residual", "rule": "is not finite"}),
        ("T is above 1e4", "T is above 1e4", {"metric": "T", "rule": "is above", "threshold": 1e4, "aggregation": "at least one"}),
        ("u(1) is outside range -1,+2", "u_1_ is outside range -1__2",
         {"metric": "u(1)", "rule": "is outside range", "range_low": -1.0, "range_high": 2.0, "aggregation": "at least one"}),
        ("loss* rate is above 3", "loss_ rate is above 3", {"metric": "loss*", "rule": "rate is above", "threshold": 3.0}),
        ("step no  progress 60", "step no  progress 60", {"metric": "step", "rule": "no progress", "window": 60.0}),
    ],
)  # fmt: skip
def test_conditions(text: str, name: str, definition: dict[str, Any]) -> None:
    body = conditions.parse(text, abort=True)
    assert (body["name"], body["abort"], body["alert"]) == (name, True, definition)
    with pytest.raises(InvalidRecord):
        conditions.parse(text.partition(" ")[0], abort=True)


def test_alerts_of_a_file_are_those_that_are_meant_for_the_run(place: Place) -> None:
    (place.cwd / "alerts.toml").write_text(
        '[[alerts]]\nname = "a"\nmetric = "x"\nrule = "is not finite"\nwhere = "tag=hot"\n\n'
        '[[alerts]]\nname = "b"\npattern = "ERROR"\nwhere = "tag=cold"\n'
    )
    place.run("--alerts", "alerts.toml", "--tag", "hot", "--alert-when", "y is below 0", "--", "true")
    assert [body["name"] for body in place.bodies("alert")] == ["y is below 0", "a"]


def test_a_kill_of_exec_ends_the_command_at_its_next_write_at_the_latest(place: Place) -> None:
    process = place.start("--", "sh", "-c", "echo $$; read x; echo more; echo still > there", stdin=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    process.stdin.write(b"\n")
    process.stdin.close()
    until(lambda: not group_of(process.pid), "the end of all")
    assert not (place.cwd / "there").exists()
