"""A9 to A12: what the product makes is its owner's alone, under any umask; what others put into a spool is not taken for the owner's."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from recorded import whole

from simspool.spool import Spool, layout, open_spool

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")

SCRIPT = """
import pathlib
from simspool.sdk import Run
with Run() as run:
    run.init("modes", record_shell_vars={"HOME"})
    run.log_metrics({"x": 1.0})
    run.log_event("hello")
    pathlib.Path("out.txt").write_text("result")
    run.save_file("out.txt", "output")
    run.add_process("true", "/bin/true")
"""


def start(*words: object, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *map(str, words)], **options)  # type: ignore[call-overload, no-any-return]


def everything(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    yield folder, folder.lstat()
    for base, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(base, name)
            yield path, path.lstat()


def open_to_others(folder: Path) -> list[str]:
    """Return what others could read, write or enter, by its own mode."""
    return sorted(
        f"{stat.filemode(info.st_mode)} {path.relative_to(folder)}"
        for path, info in everything(folder)
        if not stat.S_ISLNK(info.st_mode) and info.st_mode & 0o077
    )


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="sp"))
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("umask", ["000", "077"])
def test_all_that_is_made_is_private(umask: str, tmp_path: Path, runtime: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    env = {
        **os.environ, "SIMSPOOL_DIR": str(tmp_path / "spool"), "SIMSPOOL_STATE": str(tmp_path / "state"), "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(runtime),
    }  # fmt: skip
    mask = int(umask, 8)

    def masked() -> None:
        os.umask(mask)

    def run(*words: object, code: int = 0) -> None:
        done = subprocess.run(
            [sys.executable, *map(str, words)], env=env, cwd=work, timeout=60, check=False, capture_output=True, preexec_fn=masked
        )  # noqa: PLW1509 - a umask is all that it sets
        assert done.returncode == code, done.stderr.decode()

    server = start(
        "-m", "simspool.agent", "serve", "--data", tmp_path / "data", "--port", 0, preexec_fn=masked, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env=env,
    )  # fmt: skip
    agent = None
    try:
        await_file(tmp_path / "data" / "url")
        env |= {"SIMSPOOL_URL": (tmp_path / "data/url").read_text().strip(), "SIMSPOOL_TOKEN_FILE": str(tmp_path / "data/token")}
        run("-c", SCRIPT)
        agent = start(
            "-m", "simspool.agent", "run", preexec_fn=masked, env=env, cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        await_file(tmp_path / "spool" / "agent" / "hosts")
        run("-c", SCRIPT)
        shell = 'echo said; echo "{\\"metrics\\":{\\"z\\":1}}" >> "$SIMSPOOL_INBOX/own.jsonl"'
        run("-m", "simspool.agent", "exec", "--", "sh", "-c", shell)
        run("-m", "simspool.agent", "sync")
        run("-m", "simspool.agent", "target", "add", "far", "simvue", "http://127.0.0.1:9", "--best-effort")
        run("-m", "simspool.agent", "status")
        run("-m", "simspool.agent", "abort", "modes-that-is-not-there", code=9)
        assert any(stat.S_ISSOCK(info.st_mode) for _, info in everything(runtime))
        assert open_to_others(runtime) == []
    finally:
        for process in filter(None, (agent, server)):
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    for name in ("spool", "state", "data"):
        # what a user's own program appends has the mode that the program gives it, in a folder of mode 0700
        assert [line for line in open_to_others(tmp_path / name) if not line.endswith("inbox/own.jsonl")] == []


def await_file(path: Path) -> None:
    deadline = time.monotonic() + 40
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.05)


@NEEDS_ROOT
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o700)
    os.chown(tmp_path / "s", 65534, 65534)
    with pytest.raises(layout.InvalidSpool, match="belongs to uid 65534"):
        open_spool(tmp_path / "s", create=True)
    (tmp_path / "w").mkdir()
    (tmp_path / "w").chmod(0o777)
    with pytest.raises(layout.InvalidSpool, match="chmod o-w"):
        open_spool(tmp_path / "w", create=True)


@NEEDS_ROOT
def test_another_users_segment_is_reported_and_not_sent(spool: Spool, tmp_path: Path) -> None:
    """A11. A file of ours in the same run goes on."""
    from simspool.spool import Tail

    mine, theirs = whole(spool, "mine"), whole(spool, "theirs")
    folder = spool.run(theirs)
    [writer] = folder.writer_ids()
    [segment] = layout.segments(folder.writer(writer))
    os.chown(segment.path, 12345, 12345)
    with pytest.raises(layout.InvalidSpool, match="belongs to uid 12345"), Tail(folder.writer(writer), theirs) as tail:
        list(tail.read())
    (tmp_path / "results").mkdir()
    command = [sys.executable, "-m", "simspool.agent"]
    add = [*command, "target", "add", "results", "directory", str(tmp_path / "results"), "--spool", spool.path]
    assert subprocess.run(add, timeout=60, check=False, capture_output=True).returncode == 0
    sync = [*command, "sync", "--spool", spool.path, "--timeout", "10"]
    done = subprocess.run(sync, capture_output=True, text=True, timeout=60, check=False)
    assert "belongs to uid 12345" in done.stdout + done.stderr
    sent = {path.parent.name for path in (tmp_path / "results").rglob("run.json")}
    assert "mine" in sent
    assert "theirs" not in sent
    checked = subprocess.run([*command, "check", "--spool", spool.path], capture_output=True, text=True, timeout=60, check=False)
    assert "belongs to uid 12345" in checked.stdout + checked.stderr
    os.chown(segment.path, os.geteuid(), os.getegid())
    assert mine
    shutil.rmtree(tmp_path / "results")
