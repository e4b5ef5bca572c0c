"""The `agent` command as a whole: starts fast, fails in one line, with the documented code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest

from simspool.agent import cli
from simspool.agent.exit_codes import CommandError, ExitCode, code_of
from simspool.spool import (
    DamagedBlob,
    InvalidRecord,
    InvalidSpool,
    Locked,
    NewerFormat,
    RunNotFound,
    SpaceExhausted,
    Spool,
    SpoolError,
    atomic,
)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make `agent check` fail in a given way."""

    def arrange(error: BaseException) -> None:
        def fail() -> None:
            raise error

        monkeypatch.setattr(cli.main, "get_command", lambda _context, _name: click.Command("check", callback=fail))

    return arrange


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SpoolError("x"), 1),
        (InvalidRecord("x"), 2),
        (CommandError(ExitCode.UNREACHABLE, "x"), 3),
        (CommandError(ExitCode.REFUSED, "x"), 4),
        (CommandError(ExitCode.NO_TARGET, "x"), 5),
        (NewerFormat("x"), 6),
        (CommandError(ExitCode.TIMEOUT, "x"), 7),
        (DamagedBlob("x"), 8),
        (RunNotFound("x"), 9),
        (InvalidSpool("x"), 10),
        (Locked("x"), 10),
        (SpaceExhausted(28, "x"), 10),
        (OSError(5, "x"), 1),
        (ZeroDivisionError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_errors_are_one_line_and_a_code(agent: Any, failing: Any, error: BaseException, code: int) -> None:
    failing(error)
    result = agent("check")
    assert result.code == code == code_of(error)
    assert result.out == ""
    assert len(result.err.strip().splitlines()) == 1


def test_messages_cannot_steer_the_terminal(agent: Any, failing: Any) -> None:
    failing(RunNotFound("no run '\x1b[2J\n'"))
    assert agent("check").err == "agent: no run '\\x1b[2J\\n'\n"


def test_debug_shows_the_traceback_of_the_unexpected(agent: Any, failing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMSPOOL_DEBUG", "1")
    failing(ZeroDivisionError("x"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["check"])


def test_usage_errors_are_2(agent: Any) -> None:
    assert agent("nonsense").code == 2
    assert agent("ls", "--nonsense").code == 2
    assert agent("ls", "--token-file", "/nowhere").code in {0, 2}
    assert agent("--help").code == 0


def test_a_spool_that_cannot_be_used_is_10(agent: Any, spool: Spool) -> None:
    assert agent("check", "--spool", "/proc/nothing").code == 10
    os.chmod(spool.path, 0o777)
    result = agent("check")
    assert result.code == 10
    assert "chmod o-w" in result.err


def test_a_newer_spool_is_6(agent: Any, spool: Spool) -> None:
    marker = os.path.join(spool.path, "SPOOL")
    atomic.write_json(marker, {"format": [9, 0], "id": spool.id})
    assert agent("check").code == 6


def test_a_token_file_must_hold_a_token(agent: Any, tmp_path: Path) -> None:
    for content in (b"", b"two words", b"\xff\xfe"):
        path = tmp_path / "token"
        path.write_bytes(content)
        result = agent("service", "install", "--user", "--dry-run", "--token-file", path)
        assert result.code == 2
        assert str(path) in result.err


def test_a_command_that_cannot_be_imported_does_not_break_the_others(agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "run", ("not_there", "run", "Gone."))
    result = agent("run")
    assert result.code == 1
    assert "pip install" in result.err
    assert agent("--help").code == 0
    assert agent("check").code == 0


def test_help_and_version_import_no_command() -> None:
    program = (
        "import sys; from simspool.agent.cli import main\n"
        "try: main([sys.argv[1]], prog_name='agent')\n"
        "finally: assert not {'aiohttp', 'sqlite3', 'psutil', 'simspool.agent.app'} & set(sys.modules)"
    )
    for option in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", program, option], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("simspool ")


def test_ctrl_c_is_130(make: Any, spool: Spool) -> None:
    """While a long run is printed into a pipe that nobody reads."""
    make.closed("long", points=100_000)
    # A job in the background of a shell script begins with SIGINT ignored, and these tests may be one.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from simspool.agent.cli import main; main()"
    command = [sys.executable, "-c", program, "cat", "long", "--json"]
    environment = {**os.environ, "SIMSPOOL_DIR": spool.path}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err
