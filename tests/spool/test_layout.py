"""Names, owners, versions, and the few files that are replaced as a whole (FORMAT.md sections 2, 8, W7)."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simspool.spool import InvalidSpool, Locked, NewerFormat, RunNotFound, SpoolError, atomic, ids, layout, open_spool
from simspool.spool.lock import SpoolLock


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_ids_are_fixed_width_and_sort_as_their_bytes(a: bytes, b: bytes) -> None:
    assert ids.from_text(ids.to_text(a)) == a
    assert len(ids.to_text(a)) == 22
    assert (ids.to_text(a) < ids.to_text(b)) == (a < b)


@pytest.mark.parametrize("text", ["", "x", "../" * 8, "z" * 22, "0" * 21 + "-", "0" * 23, "٠" * 22])
def test_what_is_no_id_is_refused(text: str, tmp_path: Path) -> None:
    """A1: an id never leads out of its folder."""
    assert not ids.is_id(text)
    with pytest.raises(ValueError):
        open_spool(tmp_path / "s", create=True).run(text)


def test_ids_made_later_sort_later() -> None:
    a = ids.new_id()
    while ids.new_id()[:6] == a[:6]:
        pass
    assert ids.to_text(a) < ids.to_text(ids.new_id())


def test_a_spool_is_made_once_and_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        made = open_spool(tmp_path / "a" / "s", create=True)
    finally:
        os.umask(old)
    assert os.stat(made.path).st_mode & 0o777 == 0o700
    assert os.stat(Path(made.path, "SPOOL")).st_mode & 0o777 == 0o600
    assert open_spool(made.path) == made
    assert open_spool(made.path, create=True).id == made.id
    assert os.listdir(made.path) == ["SPOOL"]


def _make(path: str) -> str:
    return open_spool(path, create=True).id


def test_many_processes_that_make_one_spool_agree(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        for n in range(5):
            assert len(set(pool.map(_make, [str(tmp_path / f"s{n}")] * 16))) == 1


@pytest.mark.parametrize(("content", "error"), [
    ("", InvalidSpool), ("nonsense", InvalidSpool), ("[]", InvalidSpool), ("{}", InvalidSpool), ('{"format": 1}', InvalidSpool),
    ('{"format": [1, 0], "id": "x"}', InvalidSpool), ('{"format": [2, 0], "id": "x"}', NewerFormat), ("[" * 100_000, InvalidSpool),
    ('{"format": [1, 7], "id": "0000000000000000000000"}', None),
])  # fmt: skip
def test_a_spools_file_is_read_strictly_and_a_newer_major_left_untouched(
    tmp_path: Path, content: str, error: type[SpoolError] | None
) -> None:
    (tmp_path / "SPOOL").write_text(content)
    for create in (False, True):
        if error is None:
            assert open_spool(tmp_path, create=create).id == "0" * 22
        else:
            with pytest.raises(error):
                open_spool(tmp_path, create=create)
    assert (tmp_path / "SPOOL").read_text() == content
    assert os.listdir(tmp_path) == ["SPOOL"]


def test_a_folder_with_other_things_or_no_folder_is_no_spool(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpool, match="no spool"):
        open_spool(tmp_path / "nothing")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InvalidSpool, match="other files"):
        open_spool(tmp_path, create=True)
    with pytest.raises((InvalidSpool, OSError)):
        open_spool(tmp_path / "thesis.tex", create=True)


def test_a_spool_that_anybody_may_write_is_refused(tmp_path: Path) -> None:
    """A10."""
    open_spool(tmp_path / "s", create=True)
    (tmp_path / "s").chmod(0o777)
    with pytest.raises(InvalidSpool, match="chmod o-w"):
        open_spool(tmp_path / "s")


@pytest.mark.root
def test_a_spool_of_someone_else_is_refused(tmp_path: Path) -> None:
    """A9; and A6, a link that someone else made."""
    if os.geteuid() != 0:
        pytest.skip("needs root to give a folder away")
    open_spool(tmp_path / "s", create=True)
    os.symlink(tmp_path / "s", tmp_path / "link")
    os.lchown(tmp_path / "link", 12345, 12345)
    with pytest.raises(InvalidSpool, match="link"):
        open_spool(tmp_path / "link")
    os.chown(tmp_path / "s", 12345, 12345)
    with pytest.raises(InvalidSpool, match="12345"):
        open_spool(tmp_path / "s")


def test_runs_are_found_by_id_prefix_and_name(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s", create=True)
    made = [ids.to_text(bytes((n,)) + bytes(15)) for n in (1, 2, 3)]
    for run_id, name in zip(made, ("a", "b", "b"), strict=True):
        atomic.make_folder(spool.run(run_id).path)
        atomic.write_json(os.path.join(spool.run(run_id).path, "run.json"), {"name": name})
    assert spool.run_ids() == made
    assert spool.find_run(made[1]) == made[1]
    assert spool.find_run(made[1][:3]) == made[1]
    assert spool.find_run("a") == made[0]
    for text in ("b", "0", "", "nobody", "../../etc"):
        with pytest.raises(RunNotFound):
            spool.find_run(text)
    Path(spool.run(made[0]).path, "run.json").write_text("damaged")
    assert spool.run(made[0]).info() == {}


def test_small_files_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W7: temporary name, fsync, rename, fsync of the folder."""
    calls: list[str] = []
    for name in ("fsync", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, _n=name, _r=real: (calls.append(_n), _r(*a))[1])
    assert atomic.write_json(str(tmp_path / "x"), {"a": "\ud800"})
    assert calls == ["fsync", "rename", "fsync"]
    assert json.loads((tmp_path / "x").read_text()) == {"a": "\ud800"}
    assert not atomic.write_json(str(tmp_path / "x"), {"b": 1}, exclusive=True)
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OSError):
        atomic.write_json(str(tmp_path / "x"), {"c": 1})
    assert os.listdir(tmp_path) == ["x"]
    with pytest.raises(ValueError, match="over"):
        atomic.read_json(str(tmp_path / "x"), limit=3)


def test_walking_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "f").write_text("x")
    (tmp_path / "a" / "secret").symlink_to("/etc")
    (tmp_path / "a" / "file").symlink_to("/etc/passwd")
    assert list(layout.walk_files(str(tmp_path))) == [str(tmp_path / "a" / "b" / "f")]


def test_one_lock_a_spool_dropped_with_its_holder(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "s", create=True)
    with SpoolLock(spool) as lock:
        lock.acquire()
        with pytest.raises(Locked, match=str(os.getpid())):
            SpoolLock(spool).acquire()
    pid = os.spawnvp(os.P_WAIT, "true", ["true"])
    assert pid == 0
    with SpoolLock(spool):
        pass
    SpoolLock(spool).release()
