"""Files that grow, rotate, shrink and vanish: each line once."""

from __future__ import annotations

import gzip
import os
import select
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simspool.agent.lines import follow, followed
from simspool.agent.lines.follow import FollowedFiles


class Log:
    """A log, and who follows it."""

    def __init__(self, folder: Path, pattern: str = "log") -> None:
        self.folder, self.path = folder, folder / "log"
        self.files = FollowedFiles([str(folder / pattern)])

    def write(self, text: str | bytes, name: str = "log") -> None:
        with (self.folder / name).open("ab") as f:
            f.write(text.encode() if isinstance(text, str) else text)

    def read(self) -> str:
        self.files._next_scan = 0.0  # names with wildcards are looked for at once, too
        return b"".join(block for _, block in self.files.read()).decode()

    def finish(self) -> str:
        return b"".join(block for _, block in self.files.finish()).decode()


@pytest.fixture(params=["log", "log*"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path, request.param)
    yield made
    made.files.close()


def test_lines_that_are_complete(log: Log) -> None:
    assert log.read() == ""
    log.write("a\nb")
    assert log.read() == "a\n"
    assert log.read() == ""
    log.write("c\r\nd")
    assert log.read() == "bc\n"
    assert log.finish() == "d\n"


def test_rotation_by_rename(log: Log) -> None:
    log.write("1\n2\n")
    assert log.read() == "1\n2\n"
    log.write("3\n")
    log.path.rename(log.folder / "log.1")
    log.write("4\n", "log.1")  # the program has it open still
    log.write("5\n")
    assert log.read() == "3\n4\n5\n"
    log.write("6\n", "log.1")
    assert log.read() == "6\n"


def test_much_that_is_left_of_the_old_file_comes_before_the_new_one(log: Log) -> None:
    log.write("1\n")
    assert log.read() == "1\n"
    long = "".join(f"{number}\n" for number in range(200_000))
    assert len(long) > 3 * followed.PIECE
    log.write(long)
    log.path.rename(log.folder / "log.1")
    log.write("new\n")
    assert log.read() == long + "new\n"


def test_a_last_line_without_end_comes_before_the_next_file(log: Log) -> None:
    log.write("1\n2")
    assert log.read() == "1\n"
    log.path.rename(log.folder / "log.1")
    assert log.read() == ""
    log.write("3\n")
    assert log.read() == "2\n3\n"


def test_the_old_file_is_compressed_and_deleted_before_it_was_read(log: Log) -> None:
    log.write("1\n")
    assert log.read() == "1\n"
    log.write("2\n")
    log.path.rename(log.folder / "log.1")
    with (log.folder / "log.1").open("rb") as old, gzip.open(log.folder / "log.1.gz", "wb") as packed:
        shutil.copyfileobj(old, packed)
    (log.folder / "log.1").unlink()
    log.write("3\n")
    assert log.read() == "2\n3\n"


def test_several_rotations_between_two_looks(log: Log) -> None:
    log.write("1\n")
    assert log.read() == "1\n"
    for number in range(2, 6):
        for old in range(5, 0, -1):
            if (log.folder / f"log.{old}").exists():
                (log.folder / f"log.{old}").rename(log.folder / f"log.{old + 1}")
        log.path.rename(log.folder / "log.1")
        log.write(f"{number}\n")
        os.utime(log.path, ns=(number, time.time_ns() + number * 10**7))  # moments that a disk can tell apart
    assert log.read() == "2\n3\n4\n5\n"


def test_copytruncate(log: Log) -> None:
    log.write("1\n2\n")
    assert log.read() == "1\n2\n"
    os.truncate(log.path, 0)
    assert log.read() == ""
    log.write("3\n")
    assert log.read() == "3\n"
    os.truncate(log.path, 0)
    log.write("longer than before\n")  # between two looks
    assert log.read() == "longer than before\n"
    os.truncate(log.path, 0)
    log.write("exactly as long ..\n")
    assert log.read() == "exactly as long ..\n"
    assert log.files.counts() == {"restarts": 3, "lost_parts": 0, "cut": 0}


def test_a_line_that_is_cut_by_a_truncation_is_not_given_as_a_whole_one(log: Log) -> None:
    log.write("a=1\na=0.12")
    assert log.read() == "a=1\n"
    os.truncate(log.path, 0)
    log.write("a=2\n")
    assert log.read() == "a=2\n"
    assert log.files.counts()["lost_parts"] == 1


def test_a_program_that_does_not_append_leaves_a_hole(log: Log) -> None:
    with log.path.open("wb", buffering=0) as program:
        program.write(b"x" * 99_999 + b"\n")
        assert len(log.read()) == 100_000
        os.truncate(log.path, 0)
        program.write(b"after the hole\n")
        assert log.read() == "after the hole\n"
        program.write(b"more\n")
        assert log.read() == "more\n"


def test_replaced_and_deleted_and_made_again(log: Log) -> None:
    assert log.read() == ""
    log.write("1\n")
    assert log.read() == "1\n"
    log.path.unlink()
    assert log.read() == ""
    log.write("2\n")
    (log.folder / "new").write_text("3\n")
    assert log.read() == "2\n"
    (log.folder / "new").rename(log.path)
    assert log.read() == "3\n"


def test_a_symbolic_link_that_is_pointed_elsewhere_and_back(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for name in ("run-1", "run-2"):
        log.write(f"{name}\n", name)
    log.path.symlink_to("run-1")
    assert log.read() == "run-1\n"
    for name, text in (("run-2", "run-2\n"), ("run-1", ""), ("run-2", "")):
        (tmp_path / "link").symlink_to(name)
        (tmp_path / "link").rename(log.path)
        assert log.read() == text
    log.write("more\n", "run-2")
    assert log.read() == "more\n"
    log.files.close()


def test_an_inode_that_is_used_again(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_KEEP_OLD", 0.0)
    log.write("first\n")
    assert log.read() == "first\n"
    inode = log.path.stat().st_ino
    log.path.unlink()
    assert log.read() == ""  # let go: the inode is free now
    for attempt in range(200):
        log.write(f"attempt {attempt} of a longer text\n")
        same = log.path.stat().st_ino == inode
        assert log.read() == f"attempt {attempt} of a longer text\n"
        if same:
            break
        log.path.unlink()


def test_a_file_that_came_back_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_KEEP_OLD", 0.0)
    log = Log(tmp_path)
    log.write("1\n")
    assert log.read() == "1\n"
    log.path.rename(tmp_path / "away")
    assert log.read() == ""
    assert not log.files._files
    log.write("2\n", "away")
    (tmp_path / "away").rename(log.path)
    assert log.read() == "2\n"
    log.path.rename(tmp_path / "away")
    assert log.read() == ""
    (tmp_path / "away").write_text("written anew, and longer\n")  # the same inode
    (tmp_path / "away").rename(log.path)
    assert log.read() == "written anew, and longer\n"
    log.files.close()


def test_more_files_than_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_MOST_OPEN", 3)
    log = Log(tmp_path, "rank*/*.log")
    for rank in range(10):
        (tmp_path / f"rank{rank}").mkdir()
    for step in range(3):
        for rank in range(10):
            log.write(f"{rank} {step}\n", f"rank{rank}/out.log")
        assert sorted(log.read().split("\n")[:-1]) == [f"{rank} {step}" for rank in range(10)]
        assert sum(file.fd is not None for file in log.files._files.values()) == 3
    log.files.close()


def test_beginning_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("old\n" * 40_000 + "begun")
    files = FollowedFiles([str(tmp_path / "*")], from_start=False)
    assert list(files.read()) == []
    with (tmp_path / "log").open("a") as f:
        f.write(" and ended\n")
    (tmp_path / "new").write_text("whole\n")
    files._next_scan = 0.0
    assert [block for _, block in files.read()] == [b"begun and ended\n", b"whole\n"]
    files.close()


def test_rubbish_pipes_and_what_may_not_be_read(tmp_path: Path) -> None:
    log = Log(tmp_path, "*")
    rubbish = os.urandom(3 * followed.PIECE).replace(b"\r", b"").replace(b"\0", b"x")
    log.write(b"R" + rubbish + b"\n", "rubbish")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(b"text\n"))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    log.files._next_scan = 0.0
    assert b"".join(block for _, block in log.files.read()) == b"R" + rubbish + b"\n"
    assert {os.path.basename(path): why for path, why in log.files.problems.items()} == {
        "packed.gz": "it is compressed", "fifo": "it is not a regular file", "folder": "it is not a regular file",
    }  # fmt: skip
    log.files.close()


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder: give a file, or a pattern such as .*/\*\.log"):
        FollowedFiles([str(tmp_path)])


def test_a_name_that_appears_rings(tmp_path: Path) -> None:
    files = FollowedFiles([str(tmp_path / "*.log")])
    assert list(files.read()) == []
    (tmp_path / "a.log").write_text("hello\n")
    assert select.select([files], [], [], 30)[0], "watchdog has not rung"
    found: list[tuple[str, bytes]] = []
    while not found:
        select.select([files], [], [], files.pause)
        found += files.read()
    assert found == [(str(tmp_path / "a.log"), b"hello\n")]
    files.close()
    files.close()


def test_without_notifications_the_scan_is_sufficient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow.filesystem, "is_network", lambda _: True)
    threads = threading.active_count()
    files = FollowedFiles([str(tmp_path / "*.log")])
    assert threading.active_count() == threads
    (tmp_path / "a.log").write_text("hello\n")
    found: list[tuple[str, bytes]] = []
    while not found:
        select.select([files], [], [], files.pause)
        found += files.read()
    assert found == [(str(tmp_path / "a.log"), b"hello\n")]
    files.close()


def test_a_reader_that_stops_in_the_middle_goes_on(tmp_path: Path) -> None:
    log = Log(tmp_path)
    text = b"".join(b"%d\n" % number for number in range(500_000))
    log.write(text)
    log.path.rename(tmp_path / "log.1")
    (tmp_path / "log.1").rename(log.path)
    got = b""
    while block := next(log.files.read(), (None, b""))[1]:
        assert len(block) <= followed.PIECE + 10
        got += block
    assert got == text
    log.files.close()


def test_nothing_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    log = Log(tmp_path)
    for number in range(40):
        log.write(f"{number}\n")
        assert log.read() == f"{number}\n"
        log.path.rename(tmp_path / f"old{number}")
    assert len(os.listdir("/proc/self/fd")) <= len(before) + follow._MOST_OLD + 2
    monkeypatch.setattr(follow, "_KEEP_OLD", 0.0)
    assert log.read() == ""
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    log.files.close()
    assert os.listdir("/proc/self/fd") == before


ACTS = ("write", "write", "part", "rename", "rename late", "truncate", "replace", "delete", "read", "read", "move on")
acts = st.lists(st.sampled_from(ACTS), max_size=40)


@given(acts, st.sampled_from(["log", "log*"]))
@settings(max_examples=80, deadline=None)
def test_any_order_of_writes_and_rotations_gives_each_line_once(acts: list[str], pattern: str) -> None:
    folder = Path(tempfile.mkdtemp())
    log = Log(folder, pattern)
    number = rotated = 0
    expected: list[str] = []
    got: list[str] = []
    ended = True  # the last line of the file has its end

    def line() -> str:
        nonlocal number
        number += 1
        expected.append(f"line {number} {'x' * (number % 37)}")
        return expected[-1] + "\n"

    def end_line(name: str = "log") -> None:
        nonlocal ended
        if not ended:
            log.write("\n", name)
            ended = True

    def rename(name: str) -> None:
        if log.path.exists():
            log.path.rename(folder / name)

    def look() -> None:
        got.extend(log.read().split("\n")[:-1])

    moves: dict[str, Callable[[], None]] = {"read": look}
    for act in acts:
        if act in moves:
            moves[act]()
        elif act == "write":
            end_line()
            log.write(line())
        elif act == "part":
            end_line()
            log.write(line()[:-1])
            ended = False
        elif act == "rename" and log.path.exists():  # what a program that rotates its own log does
            end_line()
            look()
            rotated += 1
            rename(f"log.{rotated}")
        elif act == "rename late" and log.path.exists():  # logrotate: the program goes on in the old file for a while
            look()
            rotated += 1
            rename(f"log.{rotated}")
            end_line(f"log.{rotated}")
            log.write(line(), f"log.{rotated}")
        elif act in {"truncate", "replace", "delete"} and log.path.exists():
            end_line()
            look()  # what was not read is lost then: nothing else is promised
            if act == "truncate":
                os.truncate(log.path, 0)
            elif act == "delete":
                log.path.unlink()
            else:
                (folder / "other").write_text(line())
                (folder / "other").rename(log.path)
        elif act == "move on" and log.path.exists():  # twice between two looks
            look()
            for _ in range(2):
                end_line()
                for old in sorted(folder.glob("log.?"), reverse=True):
                    old.rename(f"{old}.{number}")
                rename("log.1")
                log.write(line())
                os.utime(log.path, ns=(0, time.time_ns() + number * 10**7))
            look()
    got.extend(log.finish().split("\n")[:-1])
    assert got == expected
    shutil.rmtree(folder)
