"""save_file, save_directory, save_all, save_object: the bytes, the names, what is refused."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from simspool.sdk import InvalidRecord, Run, UnreadableFile


@pytest.fixture
def run() -> Any:
    with Run(mode="offline") as run:
        run.init("files")
        yield run


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_a_snapshot_named_after_itself(run: Run, found: Any) -> None:
    Path("sub").mkdir()
    Path("sub/a.csv").write_bytes(b"1,2\n")
    assert run.save_file("sub/a.csv", "input") is True
    Path("sub/a.csv").write_bytes(b"changed")
    assert run.save_file(Path("sub/a.csv"), category="output", preserve_path=True, metadata={"k": 1}) is True
    assert run.save_file(os.path.abspath("sub/a.csv"), "code", name="x/../y", file_type="text/x-odd") is True
    assert run.save_file("sub/a.csv", "code", preserve_path_relative_to="cwd", snapshot=True, filetype="text/plain") is True
    spool = found()
    first, second, third, fourth = spool.of("artifact")
    assert (first["name"], first["category"], first["mime"], first["size"]) == ("a.csv", "input", "text/csv", 4)
    assert first["digest"] == digest(b"1,2\n")
    assert (second["name"], second["digest"], second["metadata"]) == ("sub/a.csv", digest(b"changed"), {"k": 1})
    assert (third["name"], third["mime"]) == ("x/../y", "text/x-odd")
    assert (fourth["name"], fourth["mime"]) == ("sub/a.csv", "text/plain")
    assert first["path"] == os.path.abspath("sub/a.csv")
    assert sorted(os.listdir(spool.folder.blobs)) == sorted({digest(b"1,2\n"), digest(b"changed")})


@pytest.mark.parametrize("what", ["missing", "folder", "fifo", "device", "loop", "secret"])
def test_what_is_no_readable_regular_file_raises_at_once(what: str, run: Run, found: Any) -> None:
    path = Path(what)
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "device":
        path = Path("/dev/zero")
    elif what == "loop":
        path.symlink_to(path)
    elif what == "secret":
        path.write_text("x")
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("root may read everything")
    with pytest.raises(UnreadableFile, match=str(path)) as caught:
        run.save_file(path, "input")
    assert isinstance(caught.value, OSError)
    assert caught.value.errno in {errno.ENOENT, errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.EACCES}
    assert not found().of("artifact")


@pytest.mark.parametrize(
    "bad", [{"category": "other"}, {"name": "a*"}, {"name": ""}, {"filetype": "text"}, {"filetype": "a b/c"}, {"metadata": 5}], ids=repr
)
def test_bad_arguments_raise(bad: dict[str, Any], run: Run) -> None:
    Path("f").write_text("x")
    with pytest.raises(InvalidRecord):
        run.save_file("f", **{"category": "input", **bad})
    with pytest.raises(InvalidRecord):
        run.save_file(5, "input")  # type: ignore[arg-type]


def test_a_folder_is_saved_whole_by_its_inner_names(run: Run, found: Any) -> None:
    for name in ("a.txt", "x/a.txt", "x/y/ü (1).dat"):
        path = Path("data", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    Path("data/link.txt").symlink_to("a.txt")
    assert run.save_directory("data", "output") is True
    assert run.save_directory(Path("data/x"), "input", preserve_path=True, filetype="text/plain") is True
    artifacts = found().of("artifact")
    assert [a["name"] for a in artifacts] == ["a.txt", "link.txt", "x/a.txt", "x/y/ü (1).dat", "data/x/a.txt", "data/x/y/ü (1).dat"]
    assert {a["mime"] for a in artifacts if a["category"] == "input"} == {"text/plain"}
    with pytest.raises(UnreadableFile, match="not a folder"):
        run.save_directory("data/a.txt", "output")
    with pytest.raises(InvalidRecord):
        run.save_directory("data", "neither")  # type: ignore[arg-type]


def test_what_cannot_be_saved_in_a_folder_is_counted_and_named(run: Run, found: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data").mkdir()
    Path("data/good").write_text("x")
    os.mkfifo("data/pipe")
    Path("data/dangling").symlink_to("nowhere")
    assert run.save_directory("data", "output") is False
    spool = found()
    assert [a["name"] for a in spool.of("artifact")] == ["good"]
    assert spool.drops == {"file-unreadable": 2}
    said = capsys.readouterr().err
    assert "data/pipe" in said
    assert "data/dangling" in said


def test_the_spool_does_not_save_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "work" / "inner"))
    Path("mine").write_text("x")
    with Run(mode="offline") as run:
        run.init("self")
        assert run.save_directory(".", "output") is True
        from simspool.sdk import Client

        assert [a["name"] for a in Client(spool=tmp_path / "work" / "inner").list_artifacts("self")] == ["mine"]


def test_save_all_takes_files_and_folders(run: Run, found: Any) -> None:
    Path("d").mkdir()
    Path("d/one").write_text("1")
    Path("two").write_text("2")
    assert run.save_all(["d", Path("two")], "code", preserve_path=True) is True
    assert [a["name"] for a in found().of("artifact")] == ["d/one", "two"]
    with pytest.raises(UnreadableFile):
        run.save_all(["gone"], "code")


def test_equal_content_is_one_blob_in_the_pool_after_close(spool_dir: Path, found: Any) -> None:
    Path("f").write_bytes(os.urandom(100_000))
    inodes = set()
    for name in ("one", "two"):
        with Run(mode="offline") as run:
            run.init(name)
            assert run.save_file("f", "output")
        folder = found(name).folder
        inodes.add(os.stat(os.path.join(folder.blobs, digest(Path("f").read_bytes()))).st_ino)
    assert len(inodes) == 1
    assert len([p for p in (spool_dir / "blobs").rglob("*") if p.is_file()]) == 1


def test_an_object_without_a_name_is_named_by_its_digest(run: Run, found: Any) -> None:
    assert run.save_object({"a": [1, None]}, "output") is True
    artifact = found().only("artifact")
    assert artifact["name"] == artifact["digest"] == digest(b'{"a": [1, null]}')
    assert artifact["mime"] == "application/json"
