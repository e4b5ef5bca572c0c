"""One run's inbox: what each line gives, epochs, positions; and each line once, wherever the agent stops."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import recorded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inbox_records import Copied, copied

from simspool.agent.inbox import copying
from simspool.agent.inbox.copying import Refused, RunInbox
from simspool.agent.inbox.files import InboxFile
from simspool.agent.inbox.positions import Mark, Position, Reached, is_copied, reached
from simspool.agent.scrub import scrub
from simspool.spool import Kind, Spool, Writer, ids, open_spool
from simspool.spool.process import start_ticks


class Inbox:
    """A run's inbox and the agents that copy it, one after another."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.run, self.writer = recorded.begin(spool, system={"cwd": str(Path(spool.path).parent)})
        self.folder = Path(spool.run(self.run).inbox)
        self.folder.mkdir()
        self.aside = ThreadPoolExecutor(1)
        self.rings: list[bytes] = []
        self.agent = self.new_agent()

    def new_agent(self) -> RunInbox:
        """An agent in the place of one that is gone without a word."""
        self.agent = RunInbox(self.spool, self.run, self.rings.append, self.aside)
        return self.agent

    def append(self, text: str | bytes, name: str = "a.jsonl") -> None:
        with open(self.folder / name, "ab") as f:
            f.write(text.encode() if isinstance(text, str) else text)

    def lines(self, *bodies: Any, name: str = "a.jsonl") -> None:
        self.append("".join(json.dumps(body) + "\n" for body in bodies), name)

    def copy(self) -> int:
        total = 0
        while count := self.agent.copy(listing=True):
            total += count
        return total

    @property
    def records(self) -> list[Copied]:
        return copied(self.spool, self.run)

    @property
    def bodies(self) -> list[tuple[Kind, dict[str, Any]]]:
        return [(one.kind, one.body) for one in self.records]

    def close(self) -> None:
        self.agent.release()
        self.writer.close({"status": "completed"})
        self.aside.shutdown()


@pytest.fixture
def inbox(spool: Spool) -> Iterator[Inbox]:
    found = Inbox(spool)
    yield found
    found.close()


def values(records: list[Copied], name: str = "n") -> list[Any]:
    return [one.body["values"][name] for one in records if one.kind == Kind.METRICS]


# ------------------------------------------------------------------ what lines give


def test_each_form_gives_its_record(inbox: Inbox, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("1,2\n")
    pid = os.getpid()
    inbox.lines(
        {"metrics": {"loss": 0.5, "on": True, "n": 3}, "step": 7, "time": 1.5, "timestamp": "2026-01-31T12:00:00.000000"},
        {"event": "begun", "level": "info"}, {"metadata": {"grid": [64, 64]}}, {"tags": ["a", "b"]},
        {"file": "out.csv", "category": "input"}, {"file": str(tmp_path / "out.csv"), "name": "again.csv"},
        {"define": {"name": "by hand", "source": "user"}}, {"alert": "by hand", "state": "critical"},
        {"define": {"name": "blown up", "rule": "is not finite", "metric": "loss", "trigger_abort": True}},
        {"process": {"pid": pid}}, {"status": "failed", "reason": "diverged"},
    )  # fmt: skip
    assert inbox.copy() == 11
    found = inbox.bodies
    ticks = (start_ticks(pid) or (0, ""))[0]
    assert [kind for kind, _ in found] == [
        Kind.METRICS, Kind.EVENT, Kind.METADATA, Kind.TAGS, Kind.ARTIFACT, Kind.ARTIFACT, Kind.ALERT, Kind.ALERT_STATE, Kind.ALERT,
        Kind.PROCESS_START, Kind.STATUS,
    ]  # fmt: skip
    bodies = [body for _, body in found]
    assert bodies[0] == {"values": {"loss": 0.5, "on": 1, "n": 3}, "step": 7}
    assert bodies[1:4] == [
        {"message": "begun", "level": "info"}, {"set": {"grid": [64, 64]}}, {"op": "add", "tags": ["a", "b"]},
    ]  # fmt: skip
    assert (bodies[4]["name"], bodies[4]["category"], bodies[4]["mime"], bodies[4]["size"]) == ("out.csv", "input", "text/csv", 4)
    assert (bodies[5]["name"], bodies[5]["category"], bodies[5]["digest"]) == ("again.csv", "output", bodies[4]["digest"])
    assert Path(inbox.spool.run(inbox.run).blobs, bodies[4]["digest"]).read_text() == "1,2\n"
    assert bodies[7] == {"id": bodies[6]["id"], "alert": "by hand", "state": "critical"}
    assert bodies[8]["abort"] is True
    assert bodies[8]["alert"] == {"rule": "is not finite", "metric": "loss"}
    assert (bodies[9]["pid"], bodies[9]["start_ticks"], bodies[9]["foreign"]) == (pid, ticks, True)
    assert bodies[10] == {"status": "failed", "reason": "diverged"}
    assert inbox.rings, "nobody was told"
    assert all(ids.is_id(ring.decode()[:22]) and ring.decode()[23:] == inbox.run for ring in inbox.rings)


BAD = {
    '{"metrics": {"x": "1"}}': "real number", '{"metrics": {}}': "no metrics", '{"metrics": [1]}': "object",
    '{"metrics": {"a,b": 1}}': "a,b", '{"metrics": {"x": 1}, "step": -1}': "step", '{"metrics": {"x": 1}, "step": 0.5}': "step",
    '{"metrics": {"x": 1}, "stpe": 1}': "stpe", '{"metrics": {"x": 1}, "event": "y"}': "exactly one", '{"loss": 1}': "exactly one",
    "[1]": "object", "plain text": "not a number", '{"event": 1}': "text", '{"event": "x", "level": "loud"}': "level",
    '{"metadata": 1}': "dictionary", '{"tags": "one"}': "list", '{"status": "running"}': "status", '{"status": "lost"}': "status",
    '{"file": "missing.h5"}': "missing.h5", '{"file": "."}': "folder", '{"file": "/dev/null"}': "regular", '{"file": ""}': "path",
    '{"file": "a", "category": "other"}': "category", '{"file": "a", "digest": "00", "size": 1}': "digest",
    '{"file": "a", "digest": "' + "0" * 64 + '", "size": 1}': "has no file", '{"alert": "nobody", "state": "ok"}': "define it first",
    '{"alert": "known", "state": "bad"}': "state", '{"define": {"name": "known", "source": "user", "trigger_abort": true}}': "already",
    '{"define": {"name": "x", "threshold": 1}}': "rule", '{"define": {"name": "x", "source": "user", "colour": 1}}': "colour",
    '{"process": {"pid": 0}}': "pid", '{"process": 1}': "pid", '{"event": "' + "x" * (1 << 20) + '"}': "longer",
    '{"metrics": {"x": null}}': "real number", '{"metadata": {"a": ' + '{"a": ' * 50 + "1" + "}" * 50 + "}}": "metadata",
}  # fmt: skip


def test_bad_lines_are_set_aside_with_their_reason_and_nothing_else_suffers(inbox: Inbox, tmp_path: Path) -> None:
    inbox.lines({"define": {"name": "known", "source": "user"}})
    for n, line in enumerate(BAD):
        inbox.append(f'{line}\n{{"metrics": {{"n": {n}}}}}\n')
    inbox.copy()
    found = inbox.records
    assert values(found) == list(range(len(BAD)))
    events = [one.body for one in found if one.kind == Kind.EVENT]
    assert len(events) == 1, "said once for a file"
    assert "not understood" in events[0]["message"]
    (kept,) = (tmp_path / "spool" / "quarantine").iterdir()
    entries = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(entries) == len(BAD)
    whole = (inbox.folder / "a.jsonl").read_bytes()
    for entry, (line, why) in zip(entries, BAD.items(), strict=True):
        assert why in entry["reason"], entry["reason"]
        start, end = entry["bytes"]
        assert whole[start:end].decode() == line + "\n"
        assert entry["line"] is None or entry["line"] == line[:2000]
    (finding,) = [f for f in scrub(inbox.spool) if f.kind == "not-understood"]
    assert not finding.is_damage
    assert finding.detail.startswith(f"{len(BAD)} lines")
    assert finding.path == str(inbox.folder / "a.jsonl")


def test_steps_count_a_files_lines_of_metrics_also_behind_another_agent(inbox: Inbox) -> None:
    inbox.lines({"metrics": {"n": 0}}, {"event": "x"}, {"metrics": {"n": 1}}, {"metrics": {"n": 2}, "step": 50})
    inbox.lines({"metrics": {"n": 0}}, name="b.jsonl")
    inbox.copy()
    inbox.new_agent()
    inbox.lines({"metrics": {"n": 3}})
    inbox.lines({"metrics": {"n": 1}}, name="b.jsonl")
    inbox.copy()
    of = {name: [o.body["step"] for o in inbox.records if o.file == name and o.kind == Kind.METRICS] for name in ("a.jsonl", "b.jsonl")}
    assert of == {"a.jsonl": [0, 1, 50, 3], "b.jsonl": [0, 1]}


def test_a_process_that_has_ended_is_no_news(inbox: Inbox) -> None:
    inbox.lines({"metrics": {"n": 0}}, {"process": {"pid": 4194304}}, {"metrics": {"n": 1}})
    inbox.copy()
    inbox.new_agent()
    inbox.lines({"metrics": {"n": 2}})
    inbox.copy()
    assert [one.kind for one in inbox.records] == [Kind.METRICS] * 3
    assert values(inbox.records) == [0, 1, 2]


def test_a_shells_step_in_exponent_form_is_a_whole_number(inbox: Inbox) -> None:
    inbox.append('{"metrics": {"n": 1}, "step": 1e+06}\n')
    inbox.copy()
    assert inbox.records[0].body["step"] == 1_000_000


# ------------------------------------------------------------------ pieces and ends


def test_half_a_line_waits_for_its_other_half(inbox: Inbox) -> None:
    line = b'{"metrics": {"n": 12}}\n'
    for at in range(len(line)):
        assert inbox.copy() == 0
        inbox.append(line[at : at + 1])
    assert inbox.copy() == 1
    assert values(inbox.records) == [12]


def test_the_last_line_of_a_run_needs_no_newline(inbox: Inbox) -> None:
    inbox.append('{"metrics": {"n": 1}}\n{"metrics": {"n": 2}}')
    assert inbox.copy() == 1
    assert inbox.agent.finish()
    assert values(inbox.records) == [1, 2]
    assert is_copied(inbox.spool.run(inbox.run))
    inbox.append('\n{"metrics": {"n": 3}}\n')
    assert not is_copied(inbox.spool.run(inbox.run))
    inbox.new_agent()
    inbox.copy()
    assert values(inbox.records) == [1, 2, 3]


def test_a_line_that_a_kill_cut_off_is_set_aside_at_the_runs_end(inbox: Inbox) -> None:
    inbox.append('{"metrics": {"n": 1}}\n{"metrics": {"n"')
    assert inbox.agent.finish()
    assert values(inbox.records) == [1]
    assert [o.body["level"] for o in inbox.records if o.kind == Kind.EVENT] == ["warning"]
    assert is_copied(inbox.spool.run(inbox.run))


@pytest.mark.parametrize("size", [(1 << 20) - 14, (1 << 20) - 13, 5 << 20])
def test_lines_up_to_a_mebibyte(inbox: Inbox, size: int) -> None:
    """A frame holds a mebibyte with its head and the field's name, so the longest message is a little shorter than the longest line."""
    inbox.append('{"event": "')
    for _ in range(4):
        inbox.append("x" * (size // 4))
        assert inbox.copy() == 0
    inbox.append('"}\n{"metrics": {"n": 1}}\n')
    assert inbox.copy() == 2
    assert values(inbox.records) == [1]
    kind, body = inbox.bodies[0]
    assert kind == Kind.EVENT
    assert body.get("level") == ("warning" if size >= (1 << 20) - 64 else None)


def test_blank_lines_are_nothing(inbox: Inbox) -> None:
    inbox.append('\n \n\r\n{"metrics": {"n": 1}}\r\n\n\t\n{"metrics": {"n": 2}}\n\n')
    inbox.copy()
    inbox.new_agent()
    inbox.append('\n{"metrics": {"n": 3}}\n')
    inbox.copy()
    assert values(inbox.records) == [1, 2, 3]
    assert not [o for o in inbox.records if o.kind == Kind.EVENT]


def test_other_names_are_left_alone(inbox: Inbox) -> None:
    for name in ("notes.txt", ".hidden.jsonl", "a.jsonl.swp"):
        inbox.lines({"metrics": {"n": 1}}, name=name)
    (inbox.folder / "folder.jsonl").mkdir()
    os.mkfifo(inbox.folder / "fifo.jsonl")
    assert inbox.copy() == 0
    assert inbox.agent.finish()
    assert is_copied(inbox.spool.run(inbox.run))


# ------------------------------------------------------------------ epochs


def restart(inbox: Inbox, *, between: bool) -> None:
    if between:
        inbox.new_agent()


@pytest.mark.parametrize("between", [False, True], ids=["one agent", "two agents"])
@pytest.mark.parametrize("longer", [False, True], ids=["shorter", "longer"])
def test_a_file_written_anew_begins_an_epoch(inbox: Inbox, between: bool, longer: bool) -> None:
    inbox.lines(*({"metrics": {"n": n}} for n in range(10)))
    inbox.copy()
    restart(inbox, between=between)
    (inbox.folder / "a.jsonl").write_text("")
    inbox.lines(*({"metrics": {"n": n}} for n in range(100, 130 if longer else 103)))
    inbox.copy()
    assert [(o.epoch, o.body["values"]["n"], o.body["step"]) for o in inbox.records] == [
        *((1, n, n) for n in range(10)), *((2, n, n - 100) for n in range(100, 130 if longer else 103)),
    ]  # fmt: skip


@pytest.mark.parametrize("between", [False, True], ids=["one agent", "two agents"])
def test_a_file_that_replaced_another_begins_an_epoch(inbox: Inbox, between: bool) -> None:
    inbox.lines(*({"metrics": {"n": n}} for n in range(5)))
    inbox.copy()
    if not between:  # the rest of the old one is read to its end
        inbox.lines({"metrics": {"n": 5}})
    (inbox.folder / "a.jsonl").rename(inbox.folder / "a.old")
    restart(inbox, between=between)
    inbox.lines(*({"metrics": {"n": n}} for n in range(50, 60)))
    inbox.copy()
    assert [(o.epoch, o.body["values"]["n"]) for o in inbox.records] == [
        *((1, n) for n in range(5 if between else 6)), *((2, n) for n in range(50, 60)),
    ]  # fmt: skip


def test_a_file_that_is_deleted_and_comes_back_begins_an_epoch(inbox: Inbox) -> None:
    inbox.lines({"metrics": {"n": 1}})
    inbox.copy()
    (inbox.folder / "a.jsonl").unlink()
    inbox.copy()
    inbox.lines({"metrics": {"n": 1}})
    inbox.copy()
    assert [(o.epoch, o.body["values"]["n"]) for o in inbox.records] == [(1, 1), (2, 1)]


@pytest.mark.parametrize("touched", [False, True], ids=["the agent is first", "the program is first"])
@pytest.mark.parametrize("kept", [0.2, 0.4, 0.97, 1.0])
def test_a_file_whose_end_a_power_cut_took_is_the_same_file(tmp_path: Path, kept: float, touched: bool) -> None:
    """The agent's segment was on the disk, the program's last lines were not: what is left was copied, and is not copied again.

    Where the program goes on before the agent looks, what follows the last position is copied again, and nothing is lost.
    """
    lines = [json.dumps({"metrics": {"n": n}}).encode() + b"\n" for n in range(200)]
    whole = b"".join(lines)
    path = tmp_path / "a.jsonl"
    path.write_bytes(whole)
    before = InboxFile(str(tmp_path), "a.jsonl", None)
    marks = []
    while found := before.lines():
        for n, line in enumerate(found):
            if n % 20 == 0:
                marks.append(before.position(line))
            before.advance(line)
    before.close()
    earlier = Reached(marks[-1], 20, 20, earlier_boot=True)
    earlier.before.extend(marks)
    left = whole[: int(len(whole) * kept)]
    path.write_bytes(left)
    if not touched:
        os.utime(path, (1e9, 1e9))
    after = InboxFile(str(tmp_path), "a.jsonl", earlier)
    read = [] if touched else after.lines()
    assert read == []
    with path.open("ab") as f:
        f.write((b"" if left.endswith(b"\n") else b"\n") + b'{"metrics": {"n": 1000}}\n')
    lines_of = [line.data for line in after.lines() if line.data and line.data.endswith(b"}}")]
    read_numbers = [json.loads(line)["metrics"]["n"] for line in lines_of]
    assert read_numbers[-1] == 1000
    assert len(read_numbers) == 1 or (touched and kept < 1 and len(read_numbers) <= 21 and read_numbers[0] % 20 == 0)
    assert after.epoch == 1
    after.close()


def test_a_shorter_file_of_the_same_boot_is_another_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"event": "x"}\n' * 10)
    before = InboxFile(str(tmp_path), "a.jsonl", None)
    for line in before.lines():
        before.advance(line)
    at = before.position(None)
    before.close()
    os.truncate(tmp_path / "a.jsonl", 30)
    after = InboxFile(str(tmp_path), "a.jsonl", Reached(at))
    assert [line.start for line in after.lines()] == [0, 15]
    assert after.epoch == 2
    after.close()


# ------------------------------------------------------------------ exactly once


class Stop(BaseException):
    """The agent is gone."""


class Kill:
    """Stops whoever records at the n-th record: before or behind it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left, self.behind = math.inf, False
        for name in ("record", "metrics"):
            monkeypatch.setattr(Writer, name, self._counted(getattr(Writer, name)))

    def _counted(self, real: Callable[..., bool]) -> Callable[..., bool]:
        def call(*args: Any, **options: Any) -> bool:
            self.left -= 1
            if self.left < 0 and not self.behind:
                raise Stop
            kept = real(*args, **options)
            if self.left < 0:
                raise Stop
            return kept

        return call


PIECES = st.lists(
    st.one_of(
        st.just("bad\n"), st.just("\n"), st.just('{"event": "e"}\n'), st.just("number"), st.just("number"), st.just('{"file": "gone"}\n'),
        st.just("truncate"), st.just("replace"), st.just("other"), st.just("copy"), st.tuples(st.integers(0, 12), st.booleans()),
    ), max_size=40,
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PIECES)
def test_each_line_once_wherever_agents_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[Any]) -> None:
    """Programs append, begin files anew and replace them; agents copy, and stop at any record: each line is there once, in its order."""
    with monkeypatch.context() as patch, pytest.MonkeyPatch.context() as own:
        kill = Kill(patch)
        own.setattr(copying, "_POSITION_LINES", 3)
        inbox = Inbox(open_spool(tmp_path / f"spool-{os.urandom(6).hex()}", create=True))
        n, name = 0, "a.jsonl"
        expected: dict[str, list[int]] = {"a.jsonl": [], "b.jsonl": []}
        for piece in [*pieces, "copy"]:
            if piece == "number":
                inbox.lines({"metrics": {"n": n}}, name=name)
                expected[name].append(n)
                n += 1
            elif piece == "other":
                name = "b.jsonl" if name == "a.jsonl" else "a.jsonl"
            elif piece == "copy":
                inbox.copy()
            elif piece in {"truncate", "replace"}:
                inbox.copy()  # what nobody had read would be lost
                if (inbox.folder / name).exists():
                    (inbox.folder / name).rename(inbox.folder / "old") if piece == "replace" else os.truncate(inbox.folder / name, 0)
                    inbox.copy()
            elif isinstance(piece, tuple):
                kill.left, kill.behind = piece
                try:
                    inbox.copy()
                except Stop:
                    inbox.new_agent()
                kill.left = math.inf
            else:
                inbox.append(piece, name)
        inbox.close()
        for file, wanted in expected.items():
            assert values([o for o in inbox.records if o.file == file]) == wanted
        positions, _ = reached(inbox.spool.run(inbox.run))
        assert {file: (inbox.folder / file).stat().st_size for file in positions if (inbox.folder / file).exists()} == {
            file: _end(inbox.folder / file, at) for file, at in positions.items() if (inbox.folder / file).exists()
        }


def _end(path: Path, at: Reached) -> int:
    """Where the next agent would begin; blank lines at the end are nothing."""
    file = InboxFile(str(path.parent), path.name, at)
    for line in file.lines():
        assert not (line.data or b"").strip()
        file.advance(line)
    file.close()
    return file.offset


def test_a_disk_that_refuses_loses_nothing_and_counts_nothing(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox.lines({"metrics": {"n": 1}})
    monkeypatch.setattr(copying, "_FREE", 1 << 62)
    for _ in range(3):
        with pytest.raises(Refused):
            inbox.agent.copy(listing=True)
    monkeypatch.undo()
    assert inbox.copy() == 1
    assert values(inbox.records) == [1]


def test_a_large_file_is_copied_while_other_lines_go_on(inbox: Inbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_SMALL", 100)
    (tmp_path / "state.bin").write_bytes(os.urandom(1 << 20))
    gate = threading.Event()
    inbox.aside.submit(gate.wait, 30)
    inbox.lines({"metrics": {"n": 1}}, {"file": "state.bin"}, {"metrics": {"n": 2}})
    inbox.lines({"metrics": {"n": 10}}, name="b.jsonl")
    inbox.copy()
    assert inbox.agent.is_waiting
    assert values(inbox.records) == [1, 10]
    gate.set()
    inbox.agent.wait(30)
    inbox.copy()
    assert not inbox.agent.is_waiting
    assert values(inbox.records) == [1, 10, 2]
    assert [o.body["size"] for o in inbox.records if o.kind == Kind.ARTIFACT] == [1 << 20]


def test_a_position_is_read_as_it_was_written() -> None:
    found = Position("a.jsonl", 3, 500, 20, 1, Mark(10, 520, 99))
    assert Position.of(found.body()) == found
    for odd in (None, {}, {"file": 1}, found.body() | {"epoch": -1}, found.body() | {"seen": [1]}, found.body() | {"offset": True}):
        assert Position.of(odd) is None
