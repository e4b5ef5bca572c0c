"""`agent service`: installs, asks and removes through `systemctl --user`; without systemd it says what to do instead."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from simspool.agent.cli import main
from simspool.agent.cli.settings import Settings
from simspool.agent.exit_codes import CommandError

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


def test_a_token_file_that_is_the_services_own_copy_stays(call: Call, home: Path) -> None:
    token = home / ".config/simspool/service-token"
    token.parent.mkdir(parents=True)
    token.write_text("secret\n")
    for _ in range(2):
        assert call("install", "--user", "--url", "http://localhost:1", "--token-file", str(token))[0] == 0
        assert token.read_text() == "secret\n"


def test_a_timer_and_an_agent_are_never_both_there(call: Call, home: Path) -> None:
    folder = home / ".config/systemd/user"
    assert call("install", "--user", "--url", "http://localhost:1")[0] == 0
    assert call("install", "--user", "--url", "http://localhost:1", "--timer", "6h")[0] == 0
    assert sorted(p.name for p in folder.iterdir()) == ["simspool-sync.service", "simspool-sync.timer"]
    assert "OnUnitInactiveSec=21600s\n" in (folder / "simspool-sync.timer").read_text()
    assert f"simspool.agent sync --spool {home}/spool --url http://localhost:1\n" in (folder / "simspool-sync.service").read_text()
    log = (home / "log").read_text()
    assert log.index("disable --now simspool-agent.service") < log.index("enable simspool-sync.timer")
    assert json.loads(call("status", "--user", "--json")[1])["form"] == "timer"
    assert call("install", "--user", "--url", "http://localhost:1")[0] == 0
    assert [p.name for p in folder.iterdir()] == ["simspool-agent.service"]
    assert call("uninstall", "--user")[0] == 0
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say --user"),
        (("--user", "--system"), "say --user"),
        (("--user", "--for", "alice"), "--for goes with --system"),
        (("--system",), "say --for USER"),
        (("--system", "--for", "../x"), "cannot stand in a unit's name"),
    ],
)
@pytest.mark.parametrize("command", ["install", "status", "uninstall"])
def test_whose_service_must_be_said(call: Call, monkeypatch: pytest.MonkeyPatch, command: str, words: tuple[str, ...], said: str) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    code, _, err = call(command, *words)
    assert code == 2
    assert said in err


@pytest.mark.parametrize("every", ["15", "1s", "soon"])
def test_a_wrong_interval_is_named(call: Call, every: str) -> None:
    code, _, err = call("install", "--user", "--timer", every)
    assert code == 2
    assert f"{every!r}" in err


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED: needs root")
def test_the_systems_files_are_shown_and_not_made(call: Call, home: Path) -> None:
    token = home / "token"
    token.write_text("secret\n")
    words = ("install", "--system", "--for", "root", "--spool", "spool", "--url", "http://x", "--token-file", str(token), "--dry-run")
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    assert "# /etc/systemd/system/simspool-agent@.service\n" in out
    assert "# /etc/systemd/system/simspool-agent@root.service.d/simspool.conf\n" in out
    assert f"run --spool {home}/spool --url http://x\n" in out
    assert f"ReadWritePaths={home}/spool " in out
    assert "LoadCredential=simspool.token:/etc/simspool/tokens/root\n" in out
    assert "secret" not in out
    assert not (home / "spool").exists()
    assert "LoadCredentialEncrypted=simspool.token:/t.cred\n" in call(*words[:-3], "--token-file", "/t.cred", "--dry-run")[1]
    assert "OnUnitInactiveSec=5400s" in call(*words, "--timer", "90min")[1]
    assert not (home / "log").exists()


def test_the_sites_alerts_go_with_the_agent(call: Call, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = home / ".config/systemd/user/simspool-agent.service"
    assert call("install", "--user", "--alerts", "alerts.toml")[0] == 0
    assert f"--alerts {home}/alerts.toml\n" in unit.read_text()
    code, _, err = call("install", "--user", "--alerts", "alerts.toml", "--timer", "1h")
    assert code == 2
    assert "evaluate nothing" in err
    monkeypatch.setenv("SIMSPOOL_ALERTS", str(home / "others.toml"))
    assert call("install", "--user")[0] == 0
    assert f"--alerts {home}/others.toml\n" in unit.read_text()
    assert call("install", "--user", "--timer", "1h")[0] == 0
    assert "--alerts" not in (unit.parent / "simspool-sync.service").read_text()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED: needs root")
def test_a_system_service_needs_a_user_that_is_there(call: Call) -> None:
    code, _, err = call("install", "--system", "--for", "no-such-user")
    assert code == 2
    assert err == "agent: there is no user 'no-such-user' on this machine\n"


def test_a_system_service_needs_root(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4200)
    for command in ("install", "uninstall"):
        code, _, err = call(command, "--system", "--for", "root")
        assert code == 1
        assert "needs root" in err


def test_the_credential_of_a_service_is_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("SIMSPOOL_TOKEN", "of-the-shell")
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "spool"))
    (tmp_path / "token").write_text("another-services")
    assert Settings().server_token == "of-the-shell"
    (tmp_path / "simspool.token").write_text("of-the-service\n")
    assert Settings().server_token == "of-the-service"
    (tmp_path / "file").write_text("of-the-file")
    assert Settings(token_file=str(tmp_path / "file")).server_token == "of-the-file"
    (tmp_path / "simspool.token").write_text("")
    with pytest.raises(CommandError, match="holds no token"):
        _ = Settings().server_token
