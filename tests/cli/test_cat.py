"""`agent cat` shows what lies in the segments: every record, in order, with its damage beside it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from simspool.spool import Drop, Kind, Spool, Writer, ids, layout


def test_a_line_per_record_in_order(agent: Any, make: Any) -> None:
    run = make.closed(points=3)
    lines = agent("cat", "orbit", "--json").lines
    assert [line["kind"] for line in lines] == ["run", "metrics", "metrics", "metrics", "event", "close"]
    assert [line["seq"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {line["writer"] for line in lines} == set(run.writer_ids())


def test_metrics_have_the_promised_fields(agent: Any, make: Any) -> None:
    make.closed(points=3)
    line = agent("cat", "orbit", "--kind", "metrics", "--json").lines[2]
    assert {"kind", "writer", "seq", "time", "timestamp", "step", "values"} <= set(line)
    assert line["values"] == {"x": 1.0, "n": 2}
    assert line["step"] == 2
    assert 0 <= line["time"] < 60
    assert abs(datetime.fromisoformat(line["timestamp"]).timestamp() - datetime.now().timestamp()) < 60


def test_given_times_are_shown_as_given(agent: Any, make: Any) -> None:
    _, writer = make.open()
    writer.metrics({"x": 1.0}, 7, 2.5, 1_000_001)
    writer.metrics({"x": 1.0}, 8, -1.0, "yesterday")
    writer.record(Kind.EVENT, {"message": "m", "timestamp": 2_000_000})
    writer.close()
    first, second, event = agent("cat", "orbit", "--kind", "metric", "--kind", "event", "--json").lines
    assert (first["step"], first["time"], first["timestamp"]) == (7, 2.5, "1970-01-01T00:00:01.000001Z")
    assert (second["step"], second["time"], second["timestamp"]) == (8, -1.0, "yesterday")
    assert (event["message"], event["timestamp"]) == ("m", "1970-01-01T00:00:02.000000Z")


def test_numbers_outside_json_are_text_that_float_reads(agent: Any, make: Any) -> None:
    _, writer = make.open()
    writer.metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "d": True})
    writer.close()
    (line,) = agent("cat", "orbit", "--kind", "metrics", "--json").lines
    assert line["values"] == {"a": "NaN", "b": "Infinity", "c": "-Infinity", "d": True}


def test_writers_are_merged_by_time_and_keep_their_own_order(agent: Any, make: Any) -> None:
    run, first = make.open()
    second = Writer(run.writers, first.run)
    second.record(Kind.ATTACH, {"reason": "attach", "rank": 1})
    for i in range(50):
        first.metrics({"first": i})
        second.metrics({"second": i})
    first.close({"status": "completed"})
    second.close({"status": "completed"})
    lines = agent("cat", "orbit", "--json").lines
    assert [line["recorded"] for line in lines] == sorted(line["recorded"] for line in lines)
    for writer in (first, second):
        own = [line["seq"] for line in lines if line["writer"] == writer.id_text]
        assert own == list(range(1, 53))
    only = agent("cat", "orbit", "--json", "--writer", second.id_text).lines
    assert len(only) == 52


def test_a_live_run_is_shown_up_to_now(agent: Any, make: Any) -> None:
    _, writer = make.open()
    writer.metrics({"x": 1})
    assert len(agent("cat", "orbit", "--json").lines) == 2
    writer.metrics({"x": 2})
    assert len(agent("cat", "orbit", "--json").lines) == 3
    writer.close()


def test_damage_and_the_gap_it_leaves_are_lines_of_their_own(agent: Any, make: Any) -> None:
    run = make.closed(points=5)
    path = layout.segments(run.writer(run.writer_ids()[0]))[0].path
    data = bytearray(Path(path).read_bytes())
    at = data.rfind(b"halfway")
    data[at] ^= 1
    Path(path).write_bytes(data)
    lines = agent("cat", "orbit", "--json").lines
    (damage,) = [line for line in lines if line["kind"] == "damage"]
    assert damage["damage"] == "corrupt"
    assert damage["bytes"][0] <= at < damage["bytes"][1]
    assert damage["sequences"] == [7, 7]
    (gap,) = [line for line in lines if line["kind"] == "gap"]
    assert (gap["sequences"], gap["reason"]) == ([7, 7], "lost")
    assert [line["seq"] for line in lines if "seq" in line] == [1, 2, 3, 4, 5, 6, 8]
    filtered = agent("cat", "orbit", "--kind", "metrics", "--json")
    assert len(filtered.lines) == 5
    assert "1 damaged place" in filtered.err


def test_drops_come_last(agent: Any, make: Any) -> None:
    _, writer = make.open()
    writer.count_drop(Drop.FILE_UNREADABLE)
    writer.close()
    last = agent("cat", "orbit", "--json").lines[-1]
    assert (last["kind"], last["counts"]) == ("drops", {"file-unreadable": 1})


def test_kinds_of_ones_own_are_shown_raw(agent: Any, make: Any) -> None:
    _, writer = make.open()
    writer.record(200, {"mine": 1})
    writer.close()
    (line,) = agent("cat", "orbit", "--kind", "200", "--json").lines
    assert line["kind"] == "200"
    assert line["raw"]


def test_names_cannot_steer_the_terminal(agent: Any, make: Any) -> None:
    _, writer = make.open("run")
    writer.record(Kind.EVENT, {"message": "\x1b]0;owned\x07\nfake line \u202e"})
    writer.metrics({"a\x1b[2J": 1.0})
    writer.close()
    out = agent("cat", "run").out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "\\x1b]0;owned\\x07\\nfake line \\u202e" in out
    assert len(out.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("cat", "nobody"), 9), (("cat",), 2), (("cat", "orbit", "--kind", "nonsense"), 2), (("cat", "orbit", "--writer", "zzz"), 9)],
)
def test_wrong_arguments_have_their_codes(agent: Any, make: Any, arguments: tuple[str, ...], code: int) -> None:
    make.closed()
    result = agent(*arguments)
    assert result.code == code
    assert result.err.splitlines()[-1].count("\n") == 0
    assert "Traceback" not in result.err


def test_the_journal_is_a_door_too(agent: Any, make: Any) -> None:
    writer = Writer(os.path.join(make.spool.agent, "w"), ids.from_text(make.spool.id))
    writer.record(Kind.RECEIPT, {"through": 5})
    writer.close()
    (line,) = agent("cat", "--journal", "--kind", "receipt", "--json").lines
    assert line["body"] == {"through": 5}


def test_memory_is_flat(make: Any, spool: Spool) -> None:
    """Four times the records, and no more memory; a reader that stops early ends it quietly."""
    make.closed("small", points=50_000)
    make.closed("large", points=200_000)
    program = (
        "import sys; from simspool.agent.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')), file=sys.stderr)"
    )

    def peak(name: str) -> int:
        command = [sys.executable, "-c", program, "cat", name, "--json"]
        done = subprocess.run(command, env={**os.environ, "SIMSPOOL_DIR": spool.path}, capture_output=True, check=True)
        assert done.stdout.count(b"\n") >= 50_000
        return int(done.stderr)

    assert peak("large") < 1.3 * peak("small")
    shell = f"{sys.executable} -m simspool.agent cat large --json | head -n 1"
    done = subprocess.run(["bash", "-c", shell], env={**os.environ, "SIMSPOOL_DIR": spool.path}, capture_output=True, check=True)
    assert json.loads(done.stdout)["kind"] == "run"
    assert done.stderr == b""
