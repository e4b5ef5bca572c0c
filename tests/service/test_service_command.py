"""`agent service`: installs, asks and removes through `systemctl --user`; without systemd it says what to do instead."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from simspool.agent.cli import main

Call = Callable[..., tuple[int, str, str]]

FAKE = """#!/bin/sh
echo "$@" >> "$FAKE_LOG"
case "$*" in
  *"--property=Version"*) [ -z "$FAKE_DOWN" ] && echo Version=252 || { echo "Failed to connect to bus" >&2; exit 1; } ;;
  *" show "*) printf 'LoadState=loaded\\nActiveState=active\\nSubState=running\\nMainPID=42\\nNRestarts=0\\n' ;;
esac
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home with a systemctl that only takes notes."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "systemctl").write_text(FAKE)
    (bin_folder / "systemctl").chmod(0o755)
    for name in ("SIMSPOOL_URL", "SIMSPOOL_TOKEN", "SIMSPOOL_TOKEN_FILE", "SIMVUE_URL", "SIMVUE_TOKEN", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(home: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `agent service ...`."""

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["service", *args], prog_name="agent")
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


def test_dry_run_prints_the_unit_and_does_nothing(call: Call, home: Path) -> None:
    code, out, _ = call("install", "--user", "--dry-run")
    assert code == 0
    assert f"run --spool {home}/spool" in out
    assert not (home / ".config").exists()
    assert not (home / "log").exists()


def test_install_status_uninstall(call: Call, home: Path) -> None:
    code, out, err = call("install", "--user", "--url", "http://localhost:1234")
    unit = home / ".config/systemd/user/simspool-agent.service"
    assert code == 0
    assert str(unit) in out
    assert "--url http://localhost:1234" in unit.read_text()
    assert stat.S_IMODE(unit.stat().st_mode) == 0o644
    log = (home / "log").read_text().splitlines()
    assert [line.removeprefix("--user --no-pager ") for line in log[1:]] == [
        "daemon-reload", "enable simspool-agent.service", "restart simspool-agent.service",
    ]  # fmt: skip
    assert "loginctl enable-linger" in err or not err
    code, out, _ = call("status", "--user", "--json")
    assert code == 0
    assert json.loads(out)["active"] is True
    assert call("uninstall", "--user")[0] == 0
    assert not unit.exists()
    assert call("uninstall", "--user")[1].startswith("there was no service")


def test_the_token_stays_out_of_the_unit(call: Call, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMSPOOL_URL", "http://localhost:1")
    monkeypatch.setenv("SIMSPOOL_TOKEN", "very-secret")
    _, out, err = call("install", "--user")
    unit = (home / ".config/systemd/user/simspool-agent.service").read_text()
    token = home / ".config/simspool/service-token"
    assert "very-secret" not in unit + out + err + (home / "log").read_text()
    assert f"--token-file {token}" in unit
    assert token.read_text() == "very-secret\n"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    call("uninstall", "--user")
    assert not token.exists()


def test_without_systemd_the_error_says_what_to_do(call: Call, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DOWN", "1")
    for command in ("install", "status", "uninstall"):
        code, _, err = call(command, "--user")
        assert code == 1
        assert "Failed to connect to bus" in err
        assert "cron" in err
        assert len(err.splitlines()) == 1
    monkeypatch.setenv("PATH", str(home))
    assert "no systemctl" in call("install", "--user")[2]
    assert not (home / ".config").exists()


def test_user_must_be_said(call: Call) -> None:
    assert call("install")[0] == 2
