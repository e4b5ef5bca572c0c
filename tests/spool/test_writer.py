"""Writers: what a call that returned True has done, and what stands in the way (FORMAT.md section 6)."""

from __future__ import annotations

import enum
import gc
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simspool.spool import Drop, Durability, InvalidRecord, Kind, Writer, ids, layout, segment, segment_header
from simspool.spool.reader import Tail, read_drop_counts

RUN = bytes(range(16))
Read = Callable[..., Any]


def make(folder: Path, **options: Any) -> Writer:
    return Writer(str(folder / "w"), RUN, **{"durability": Durability.LAZY, **options})


def test_metrics_come_back_with_their_types(writer: Writer, read: Read) -> None:
    given: list[dict[str, Any]] = [
        {"a": 0.5}, {"a": 1}, {"a": True}, {"a": -0.0, "b": math.inf}, {"a": 1, "b": 2.0, "c": False},
        {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4},
        {f"m{i}": i * 0.5 for i in range(30)}, {"é\ud800": 1.0}, {"b": 2.0, "a": -0.0},
    ]  # fmt: skip
    for values in [*given, *given]:
        assert writer.metrics(values)
    got = read(writer.folder)
    assert [r[3] for r in got.records] == [*given, *given]
    assert [[type(v) for v in r[3].values()] for r in got.records[:8]] == [[type(v) for v in g.values()] for g in given[:8]]
    assert [r[2] for r in got.records] == list(range(18))
    assert {r[1] for r in got.records} == {Kind.METRICS}


def test_values_of_other_libraries_become_plain_numbers(writer: Writer, read: Read) -> None:
    class Level(enum.IntEnum):
        HIGH = 3

    given = {"f8": np.float64(0.5), "f4": np.float32(0.25), "i": np.int64(-7), "u": np.uint64(2**64 - 1), "b": np.bool_(True),
             "z": np.array(1.5), "one": np.array([2]), "e": Level.HIGH}  # fmt: skip
    expected = {"f8": 0.5, "f4": 0.25, "i": -7, "u": 2**64 - 1, "b": True, "z": 1.5, "one": 2, "e": 3}
    for name, value in given.items():
        assert writer.metrics({name: value})
        assert writer.metrics({name: value})
    assert writer.metrics(given)
    got = [r[3] if r[3] is not None else r[2]["values"] for r in read(writer.folder).records]
    assert got == [{n: expected[n]} for n in given for _ in range(2)] + [expected]
    assert {n: type(v) for n, v in got[-1].items()} == {n: type(v) for n, v in expected.items()}


def test_integers_of_any_size_and_any_text_of_time_are_kept(writer: Writer, read: Read) -> None:
    assert writer.metrics({"a": 2**63 - 1})
    assert writer.metrics({"a": 2**63})
    assert writer.metrics({"a": 10**300}, step=2**70)
    assert writer.metrics({"a": 1.0}, timestamp="2024-01-01T00:00:00", time=3)
    assert writer.metrics({"a": 1.0}, timestamp=1_700_000_000_000_000)
    got = read(writer.folder).records
    assert [r[3] or r[2]["values"] for r in got] == [{"a": 2**63 - 1}, {"a": 2**63}, {"a": 10**300}, {"a": 1.0}, {"a": 1.0}]
    assert got[2][2]["step"] == 2**70
    assert (got[3][2]["timestamp"], got[3][2]["time"]) == ("2024-01-01T00:00:00", 3.0)


@pytest.mark.parametrize(
    ("values", "options"),
    [({}, {}), ({"a": "x"}, {}), ({"a": None}, {}), ({"a": 1j}, {}), ({1: 1.0}, {}), ({"": 1.0}, {}), ({"x" * 1025: 1.0}, {}), ([1], {}),
     ({"a": np.array([1, 2])}, {}), ({"a": 1.0}, {"step": -1}), ({"a": 1.0}, {"step": 1.5}), ({"a": 1.0}, {"step": "1"}),
     ({"a": 1.0}, {"time": "x"}), ({"a": 1.0}, {"timestamp": 1.5}), ({"a": "1"}, {}), ({"a": object()}, {})],
)  # fmt: skip
def test_the_callers_mistakes_raise_and_record_nothing(writer: Writer, read: Read, values: Any, options: dict[str, Any]) -> None:
    for _ in range(2):
        with pytest.raises(InvalidRecord) as caught:
            writer.metrics(values, **options)
        assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert writer.metrics({"a": 1.0})
    with pytest.raises(InvalidRecord):
        writer.metrics(values, **options)
    assert read(writer.folder).sequences == [1]


def test_names_of_a_new_shape_are_shown_to_the_callers_check(tmp_path: Path) -> None:
    seen = []

    def check(name: str) -> None:
        seen.append(name)
        if name == "bad":
            raise InvalidRecord("no")

    w = make(tmp_path, check_name=check)
    for _ in range(3):
        assert w.metrics({"a": 1.0, "b": 2})
        with pytest.raises(InvalidRecord):
            w.metrics({"bad": 1.0})
    assert seen == ["a", "b", "bad", "bad", "bad"]
    w.close()


def test_a_dict_with_defaults_is_not_changed(writer: Writer, read: Read) -> None:
    from collections import defaultdict

    writer.metrics({"loss": 1.0})
    values: Any = defaultdict(float, x=2.0)
    assert writer.metrics(values)
    assert values == {"x": 2.0}
    assert read(writer.folder).records[-1][3] == {"x": 2.0}


def test_both_implementations_leave_the_same_bytes(tmp_path: Path, fixed: Callable[[], None], content: Callable[[str], Any]) -> None:
    found = []
    for mapped in (True, False):
        fixed()
        w = make(tmp_path / str(mapped), mapped=mapped)
        w.record(Kind.ATTACH, {"reason": "test"})
        for n in range(3000):
            w.metrics({"loss": n * 0.5, "acc": n}, step=n)
            if n % 500 == 0:
                w.record(Kind.EVENT, {"message": "x" * n})
                w.metrics({"other": True, "b": 1.5}, time=1.0)
                w.count_drop(Drop.INVALID)
        assert w.close({"status": "completed"})
        found.append(content(w.folder))
    assert found[0] == found[1]


def test_sixty_four_bytes_a_call_are_enough_for_two_metrics(writer: Writer) -> None:
    for n in range(10_000):
        writer.metrics({"loss": n * 0.5, "acc": 0.1}, step=n)
    writer.close()
    assert os.path.getsize(layout.segments(writer.folder)[0].path) <= 64 * 10_000


def test_a_segment_is_left_behind_when_it_is_full_and_sealed_by_maintain(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, read: Read
) -> None:
    """W5, W4: the limit, one frame more at most."""
    monkeypatch.setattr(segment, "SEGMENT_MAX", 1 << 16)
    for n in range(5000):
        assert writer.metrics({"a": n})
        if n % 700 == 0:
            writer.maintain()
    assert writer.record(Kind.EVENT, {"message": "x" * 200_000})
    writer.maintain()
    names = sorted(n for n in os.listdir(writer.folder) if not n.endswith(".next"))
    assert [n for n in names if n.endswith(".open")] == names[-1:]
    assert read(writer.folder, dead=False).sequences == list(range(1, 5002))
    assert writer.close()
    assert all(n.endswith(".seg") for n in os.listdir(writer.folder))
    sizes = [os.path.getsize(s.path) for s in layout.segments(writer.folder)]
    assert all(size <= (1 << 16) + 1024 for size in sizes[:-1])
    got = read(writer.folder)
    assert got.sequences == list(range(1, 5002))
    assert not got.damage


def test_the_next_segment_is_prepared_off_the_callers_thread(tmp_path: Path) -> None:
    w = make(tmp_path, mapped=True)
    while not os.path.exists(layout.segment_path(w.folder, 1, "open")) or w._stream.now.pos < 7 << 20:
        w.record(Kind.EVENT, {"message": "x" * 100_000})
    w.maintain()
    (ready,) = Path(w.folder).glob("000002.*.next")
    inode = ready.stat().st_ino
    for _ in range(20):
        w.record(Kind.EVENT, {"message": "x" * 100_000})
    assert os.stat(layout.segment_path(w.folder, 2, "open")).st_ino == inode
    assert w.close()


def test_a_prepared_segment_that_is_not_used_goes_away_with_the_close(tmp_path: Path) -> None:
    w = make(tmp_path, mapped=True)
    while w._stream.now.pos < 7 << 20:
        w.record(Kind.EVENT, {"message": "x" * 100_000})
    w.maintain()
    w.close()
    assert os.listdir(w.folder) == ["000001.seg"]


def test_a_preparation_never_touches_the_file_that_a_caller_is_about_to_use(tmp_path: Path) -> None:
    """W3: the second preparation of a number, while the first was taken and not yet renamed, would be a SIGBUS."""
    w = make(tmp_path, mapped=True)
    w.metrics({"a": 1.0})
    taken = w._stream.prepare_next(2)
    again = w._stream.prepare_next(2)
    assert taken is not None
    assert again is not None
    taken.store[0:4] = b"good"
    assert os.path.getsize(taken.path) > 0
    w._stream.adopt(again)
    w._stream.adopt(taken)
    assert not os.path.exists(taken.path)
    assert w.close()
    assert os.listdir(w.folder) == ["000001.seg"]


def test_more_shapes_than_a_segment_holds_are_recorded_as_json(writer: Writer, monkeypatch: pytest.MonkeyPatch, read: Read) -> None:
    from simspool.spool import stream

    monkeypatch.setattr(stream, "MAX_SHAPES", 5)
    for n in range(8):
        assert writer.metrics({f"m{n}": n}, step=n)
    got = read(writer.folder).records
    assert [r[1] for r in got] == [Kind.METRICS] * 5 + [Kind.METRICS_JSON] * 3
    assert got[-1][2] == {"values": {"m7": 7}, "step": 7}


def test_sixteen_thousand_columns_fit_and_more_are_json(writer: Writer, read: Read) -> None:
    assert writer.metrics({f"m{i}": float(i) for i in range(16384)})
    assert writer.metrics({f"m{i}": float(i) for i in range(16385)})
    assert [r[1] for r in read(writer.folder).records] == [Kind.METRICS, Kind.METRICS_JSON]


def test_an_interrupted_definition_does_not_use_its_number_again(tmp_path: Path, read: Read) -> None:
    """An error between the two copies: FORMAT.md section 4, a number is never used for two shapes."""
    w = make(tmp_path, mapped=True)
    w.metrics({"a": 1.0})
    store = w._stream.now.store

    class Failing:
        left = 1

        def __setitem__(self, where: slice, data: bytes) -> None:
            if not self.left:
                raise OSError(5, "Input/output error")
            self.left -= 1
            store[where] = data

    w._stream.now.store = Failing()
    assert w.metrics({"b": 1.0}) is False
    w._stream.now.store = store
    assert w.metrics({"c": 2.0})
    assert w.metrics({"b": 3.0})
    got = read(w.folder)
    assert [r[3] for r in got.records] == [{"a": 1.0}, {"c": 2.0}, {"b": 3.0}]
    assert not got.damage
    assert w.drops == {"io-error": 1}
    w.close()


# ---------------------------------------------------------------- closing


def test_the_close_record_is_the_last_and_closing_again_is_harmless(writer: Writer, read: Read) -> None:
    writer.metrics({"a": 1.0})
    assert writer.close({"status": "completed"})
    assert writer.close({"status": "failed"})
    assert writer.metrics({"a": 1.0}) is False
    assert writer.record(Kind.EVENT, {"message": "late"}) is False
    assert writer.drops == {"closed": 2}
    got = read(writer.folder, dead=False)
    assert got.records[-1][1:3] == (Kind.CLOSE, {"status": "completed", "drops": {}})
    assert got.complete


def test_a_writer_that_recorded_nothing_leaves_nothing(tmp_path: Path) -> None:
    w = make(tmp_path)
    assert w.close()
    assert not (tmp_path / "w").exists()


def test_a_segment_without_records_is_sealed_and_read(tmp_path: Path, mapped: bool, read: Read) -> None:
    w = make(tmp_path, mapped=mapped)
    w._stream._make_room(100)
    assert w.close()
    got = read(w.folder)
    assert (got.records, got.damage, got.gaps) == ([], [], [])


# ---------------------------------------------------------------- threads, signals, forks


def test_threads_lose_and_repeat_nothing(writer: Writer, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "SEGMENT_MAX", 1 << 17)
    done = threading.Event()

    def work(k: int) -> None:
        for n in range(2000):
            assert writer.metrics({f"t{k}": n}, step=n)
            if n % 100 == 0:
                assert writer.record(Kind.EVENT, {"message": str(n)})

    def upkeep() -> None:
        while not done.is_set():
            writer.maintain()

    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
        keeper = threading.Thread(target=upkeep)
        for t in (*threads, keeper):
            t.start()
        for t in threads:
            t.join()
        done.set()
        keeper.join()
    finally:
        sys.setswitchinterval(old)
    assert writer.close()
    got = read(writer.folder)
    assert got.sequences == list(range(1, 6 * 2020 + 1))
    assert not got.damage
    for k in range(6):
        assert [r[2] for r in got.records if r[3] and f"t{k}" in r[3]] == list(range(2000))


def test_calls_from_signal_handlers_neither_deadlock_nor_tear(tmp_path: Path, mapped: bool, read: Read) -> None:
    w = make(tmp_path, mapped=mapped)
    inside = kept = 0

    def handler(*_: Any) -> None:
        nonlocal inside
        inside += w.record(Kind.EVENT, {"message": "signal"}) + w.metrics({"h": 1.0})
        signal.setitimer(signal.ITIMER_REAL, 0.0003)

    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0003)
    try:
        until = time.monotonic() + 0.6
        while time.monotonic() < until:
            kept += w.metrics({"a": 1.0, "b": 2.0})
            kept += w.record(Kind.EVENT, {"message": "main"})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert w.close()
    found = [read(str(tmp_path / "w" / name)) for name in os.listdir(tmp_path / "w")]
    records = [r for got in found for r in got.records if r[1] not in {Kind.ATTACH, Kind.CLOSE}]
    assert len(records) == kept + inside
    assert inside > 200
    assert len(found) <= 2  # the side writer
    assert all(not got.damage and not got.gaps for got in found)


class _Boom(BaseException):
    pass


@pytest.mark.filterwarnings("ignore")  # a file that `with open(...)` had just opened is closed by its destructor
def test_an_exception_out_of_a_signal_handler_leaves_a_sound_writer(tmp_path: Path, mapped: bool, read: Read) -> None:
    """A KeyboardInterrupt anywhere: every True is found, sequences have no holes, the turn is given back."""
    w = make(tmp_path, mapped=mapped)
    armed = False
    true: list[int] = []
    n = caught = 0

    def handler(*_: Any) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise _Boom

    def flood() -> None:
        nonlocal armed, n
        armed = True
        signal.setitimer(signal.ITIMER_REAL, 0.00002 + (n % 37) * 3e-6)
        while armed:  # the exception may have come in a destructor, which swallows it
            n += 1
            if w.metrics({f"s{n // 200}": n}) and (n % 7 or w.record(Kind.EVENT, {"message": n})):
                true.append(n)

    old = signal.signal(signal.SIGALRM, handler)
    deadline = time.monotonic() + 1
    try:
        while time.monotonic() < deadline:
            try:
                flood()
            except _Boom:
                caught += 1
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert w.metrics({"last": 1.0})
    assert w.close()
    got = read(w.folder)
    assert caught > 100
    assert not got.damage
    assert got.sequences == list(range(1, len(got.sequences) + 1))
    found = {v for r in got.records for v in (r[3] or {}).values()}
    found |= {v for r in got.records if r[1] == Kind.METRICS_JSON for v in r[2]["values"].values()}
    assert set(true) <= found
    events = {r[2]["message"] for r in got.records if r[1] == Kind.EVENT}
    assert {n for n in true if n % 7 == 0} <= events


def test_a_destructor_that_records_in_the_middle_of_a_call(tmp_path: Path, read: Read) -> None:
    w = make(tmp_path, mapped=True)

    class Noisy:
        def __del__(self) -> None:
            w.metrics({"gone": 1.0})

    class Value:
        def item(self) -> float:
            loop: Any = Noisy()
            loop.me = loop
            del loop
            gc.collect()
            return 1.0

    for _ in range(20):
        assert w.metrics({"v": Value()})
    w.close()
    found = [read(str(tmp_path / "w" / name)) for name in os.listdir(tmp_path / "w")]
    assert sum(r[3] is not None for got in found for r in got.records) == 40


def test_a_close_from_a_handler_in_the_middle_of_a_call_takes_effect_when_the_call_returns(tmp_path: Path, read: Read) -> None:
    w = make(tmp_path, mapped=False)
    w.metrics({"a": 1.0})
    store = w._stream.now.store

    class Interrupting:
        def __setitem__(self, where: slice, data: bytes) -> None:
            store[where] = data
            if w._stream.now.store is self:
                w._stream.now.store = store
                assert w.close({"status": "terminated"})

    w._stream.now.store = Interrupting()
    assert w.metrics({"a": 2.0})
    assert w.closed
    got = read(w.folder)
    assert [r[1] for r in got.records] == [Kind.METRICS, Kind.METRICS, Kind.CLOSE]
    assert os.listdir(w.folder) == ["000001.seg"]


def test_a_doorbell_that_records_or_raises_is_harmless(tmp_path: Path, read: Read) -> None:
    rung = []

    def bell() -> None:
        rung.append(1)
        if len(rung) < 5:
            w.record(Kind.EVENT, {"message": "from the bell"})
        raise RuntimeError

    w = make(tmp_path, on_record=bell)
    assert w.record(Kind.EVENT, {"message": "x"})
    assert w.metrics({"a": 1.0})
    w.close()
    assert len(read(w.folder).sequences) == 6


def test_the_doorbell_is_throttled_for_metrics_and_at_once_for_events(tmp_path: Path) -> None:
    rung = []
    w = make(tmp_path, on_record=lambda: rung.append(1), ring_every=1 << 60)
    for n in range(100):
        w.metrics({"a": n})
    assert len(rung) == 1
    w.record(Kind.EVENT, {"message": "x"})
    assert len(rung) == 2
    w.close()


def in_child(work: Callable[[], Any]) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_begins_a_writer_of_its_own(tmp_path: Path, mapped: bool, read: Read) -> None:
    """W2: the child leaves its parent's files alone."""
    seen: list[str] = []
    w = make(tmp_path, mapped=mapped, on_fork=lambda me: seen.append(me.id_text))
    w.metrics({"a": 1.0})
    before = w.id_text

    def child() -> None:
        assert w.metrics({"a": 2.0})
        assert w.id_text != before
        assert seen == [w.id_text]
        assert in_child(lambda: w.close({"status": "completed"})) == 0
        assert w.close({"status": "completed"})

    assert in_child(child) == 0
    assert w.metrics({"a": 3.0})
    assert w.id_text == before
    assert w.close()
    found = {name: read(str(tmp_path / "w" / name)) for name in os.listdir(tmp_path / "w")}
    assert len(found) == 3
    assert [r[3] for r in found.pop(before).records] == [{"a": 1.0}, {"a": 3.0}]
    for got in found.values():
        assert got.records[0][1] == Kind.ATTACH
        assert got.records[0][2]["reason"] == "fork"
        assert got.records[-1][1] == Kind.CLOSE


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_in_the_middle_of_another_threads_call(tmp_path: Path, read: Read) -> None:
    """The child must not wait for a turn that its parent's thread held, also when its own threads call at once."""
    w = make(tmp_path, mapped=True)
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            w.metrics({"p": 1.0})

    def child() -> None:
        threads = [threading.Thread(target=lambda: [w.metrics({"c": 1.0}) for _ in range(50)]) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(20)
        assert w.sequence == 201
        w.close()

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        results = [in_child(child) for _ in range(15)]
    finally:
        stop.set()
        thread.join()
    w.close()
    assert results == [0] * 15
    assert len(os.listdir(tmp_path / "w")) == 16


def test_the_pid_stands_in_where_pages_cannot_be_wiped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from simspool.spool import forks

    monkeypatch.setattr(forks.mmap, "mmap", lambda *_, **__: (_ for _ in ()).throw(OSError(22, "no")))
    page = forks.own_page()
    assert page[0] == 1
    monkeypatch.setattr(forks.os, "getpid", lambda: 1)
    assert page[0] == 0


# ---------------------------------------------------------------- drops and errors


def test_drop_counters_survive_sigkill(tmp_path: Path, mapped: bool) -> None:
    script = f"""
import os, signal
from simspool.spool import Writer, Drop, Durability
w = Writer({str(tmp_path / "w")!r}, bytes(range(16)), mapped={mapped}, durability=Durability.LAZY)
w.count_drop(Drop.BUDGET)
w.metrics({{"a": 1.0}})
for _ in range(3): w.count_drop(Drop.INVALID)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    (writer,) = os.listdir(tmp_path / "w")
    assert read_drop_counts(str(tmp_path / "w" / writer)) == {"budget": 1, "invalid": 3}


def test_drop_counters_are_carried_into_later_segments(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "SEGMENT_MAX", 1 << 16)
    writer.metrics({"a": 1.0})
    writer.count_drop(Drop.INVALID)
    for _ in range(3000):
        writer.metrics({"a": 1.0})
    writer.close()
    assert len(layout.segments(writer.folder)) > 1
    assert read_drop_counts(writer.folder) == {"invalid": 1}
    newest = Path(layout.segments(writer.folder)[-1].path)
    data = bytearray(newest.read_bytes())
    data[segment_header.drop_slot(int(Drop.INVALID), 1, 0)[0] + 2] ^= 1
    newest.write_bytes(data)
    assert read_drop_counts(writer.folder) == {"invalid": 1}


def test_a_full_disk_is_a_counted_drop_and_recording_goes_on_when_there_is_space(
    tmp_path: Path, mapped: bool, monkeypatch: pytest.MonkeyPatch, read: Read
) -> None:
    from simspool.spool import SpaceExhausted, stream

    w = make(tmp_path, mapped=mapped)
    assert w.metrics({"a": 0})

    def full(*_: Any, **__: Any) -> None:
        raise SpaceExhausted(28, "No space left on device")

    monkeypatch.setattr(segment, "allocate", full)
    monkeypatch.setattr(segment._FileStore, "__setitem__", full)
    kept = sum(w.metrics({"a": n}) for n in range(5000))
    assert kept < 5000
    assert w.drops == {"disk-full": 5000 - kept}
    assert "No space" in w.last_error
    monkeypatch.undo()
    monkeypatch.setattr(stream, "_RETRY_AFTER_NS", 0)
    time.sleep(0.11)
    assert w.metrics({"a": 1})
    assert w.close()
    got = read(w.folder)
    assert got.sequences == list(range(1, kept + 3))
    assert not got.damage


def test_a_segment_whose_fdatasync_failed_is_left_and_never_synced_again(
    tmp_path: Path, mapped: bool, monkeypatch: pytest.MonkeyPatch, read: Read
) -> None:
    """W9."""
    w = make(tmp_path, mapped=mapped, durability=Durability.INTERVAL)
    w.metrics({"a": 1})
    w.maintain()
    w.metrics({"a": 2})
    synced: list[int] = []

    def fails(fd: int) -> None:
        synced.append(fd)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails)
    w.maintain()
    monkeypatch.undo()
    assert len(synced) == 1
    assert w.drops == {"io-error": 1}
    assert "segment 1" in w.last_error
    assert w.metrics({"a": 3})
    assert w.close()
    assert sorted(os.listdir(w.folder)) == ["000001.open", "000002.seg"]
    assert read(w.folder).sequences == [1, 2, 3]


def test_each_call_is_durable_before_it_returns(tmp_path: Path, mapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda _: calls.append("data"))
    monkeypatch.setattr(os, "fsync", lambda _: calls.append("all"))
    w = make(tmp_path, mapped=mapped, durability=Durability.EACH)
    calls.clear()
    w.metrics({"a": 1})
    assert calls[-2:] == ["all", "all"]  # W9: the file and the name it lies under
    calls.clear()
    w.metrics({"a": 2})
    w.record(Kind.EVENT, {"message": "x"})
    assert calls == ["data", "data"]
    w.close()


def test_each_says_false_when_the_disk_refuses_and_goes_on_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Read) -> None:
    w = make(tmp_path, mapped=True, durability=Durability.EACH)
    assert w.metrics({"a": 1})
    monkeypatch.setattr(os, "fdatasync", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    assert w.metrics({"a": 2}) is False
    monkeypatch.undo()
    assert w.metrics({"a": 3})
    assert w.close()
    assert read(w.folder).sequences == [1, 2, 3]
    assert w.drops == {"io-error": 1}


def test_sync_makes_old_segments_durable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "SEGMENT_MAX", 1 << 16)
    w = make(tmp_path, mapped=True)
    for n in range(4000):
        w.metrics({"a": n})
    assert w.sync()
    names = sorted(os.listdir(w.folder))
    assert all(n.endswith(".seg") for n in names[:-1])
    w.close()


def test_a_seal_that_finds_no_space_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Read) -> None:
    w = make(tmp_path, mapped=True)
    w.metrics({"a": 1})
    real = os.ftruncate
    monkeypatch.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert w.close({"status": "completed"}) is False
    assert "sealing segment 1" in w.last_error
    monkeypatch.setattr(os, "ftruncate", real)
    assert w.close()
    assert os.listdir(w.folder) == ["000001.seg"]
    assert not read(w.folder).damage


def test_an_interrupted_rotation_uses_a_new_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Read) -> None:
    """W5: readers may know the file already."""
    w = make(tmp_path, mapped=True)
    w.metrics({"a": 1})
    real = segment.activate

    def interrupted(*args: Any) -> None:
        real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(segment, "activate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        w._stream.open_next()
    monkeypatch.undo()
    assert w.metrics({"a": 2})
    w._stream.open_next()
    assert w.metrics({"a": 3})
    assert w.close()
    assert [s.number for s in layout.segments(w.folder)] == [1, 2, 3]
    got = read(w.folder)
    assert got.sequences == [1, 2, 3]
    assert not got.damage


def test_a_spool_that_cannot_be_written_drops_and_does_not_raise(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("a file where the folder should be")
    w = make(tmp_path)
    assert w.metrics({"a": 1}) is False
    assert w.record(Kind.EVENT, {"message": "x"}) is False
    assert sum(w.drops.values()) == 2
    assert w.close({"status": "completed"}) is False


def test_closing_lets_go_of_all_descriptors(tmp_path: Path, mapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "SEGMENT_MAX", 1 << 16)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        w = make(tmp_path, mapped=mapped, durability=Durability.INTERVAL)
        for n in range(4000):
            w.metrics({"a": n})
        w.maintain()
        w.close()
        Tail(w.folder, ids.to_text(RUN)).close()
    assert len(os.listdir("/proc/self/fd")) == before
