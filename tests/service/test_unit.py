"""The systemd user unit: systemd itself accepts it, and the command line arrives as it was meant."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simspool.agent.service import unit

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="SKIPPED: systemd-analyze is not installed")


@needs_systemd
@pytest.mark.parametrize("arguments", [[], ["--spool", '/a b/50% of $HOME/"q"\\', "--url", "https://example.org/?a=1;b"]])
def test_systemd_accepts_the_unit(tmp_path: Path, arguments: list[str]) -> None:
    path = tmp_path / unit.NAME
    path.write_text(unit.render(arguments))
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(path)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")  # an unknown key is only a warning, on stderr


@needs_systemd
def test_the_unit_is_as_hard_as_a_user_unit_can_be(tmp_path: Path) -> None:
    path = tmp_path / unit.NAME
    path.write_text(unit.render())
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=65", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_interpreter_is_absolute_and_the_arguments_are_quoted() -> None:
    text = unit.render(["--spool", "/a b"])
    assert re.search(r"^ExecStart=(\S+)", text, re.MULTILINE)[1] == os.path.abspath(sys.executable)  # type: ignore[index]
    assert '-m simspool.agent run --spool "/a b"\n' in text
    assert "@PYTHON@" not in text
    assert "@ARGUMENTS@" not in text


@pytest.mark.parametrize(
    ("word", "quoted"),
    [("/plain", "/plain"), ("50%", "50%%"), ("$HOME", "$$HOME"), ("a b", '"a b"'), ('a"b', '"a\\"b"'), ("a\\b", '"a\\\\b"'), ("", '""')],
)
def test_words_are_quoted_for_systemd(word: str, quoted: str) -> None:
    assert unit.quote(word) == quoted


@pytest.mark.parametrize("word", ["a\nExecStart=/bin/evil", "\x00", "\udc80"])
def test_what_a_unit_cannot_hold_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="unit file"):
        unit.quote(word)
