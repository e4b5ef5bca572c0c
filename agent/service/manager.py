"""Putting the unit into the user's systemd, and asking it how it does. Only `systemctl --user` is ever called."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.spool import atomic

from .unit import NAME

_TIMEOUT = 60
_SHOWN = ("LoadState", "UnitFileState", "ActiveState", "SubState", "Result", "MainPID", "NRestarts", "ExecMainStatus")


def config_home() -> str:
    """Return the user's folder for configuration."""
    return os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")


def unit_path() -> str:
    """Return where the user's unit lies."""
    return os.path.join(config_home(), "systemd", "user", NAME)


def token_path() -> str:
    """Return where the service's copy of the token lies: a service does not see the shell's variables."""
    return os.path.join(config_home(), "simspool", "service-token")


@dataclass(frozen=True, slots=True)
class State:
    """What systemd says of the service."""

    installed: bool
    properties: dict[str, str]

    @property
    def active(self) -> bool:
        """Whether it runs now."""
        return self.properties.get("ActiveState") == "active"


def require_systemd() -> None:
    """Raise CommandError, with what to do instead, where there is no systemd user manager."""
    why = None
    if shutil.which("systemctl") is None:
        why = "there is no systemctl on this machine"
    else:
        answer = _systemctl("show", "--property=Version", check=False)
        if answer.returncode:
            why = (answer.stderr.strip().splitlines() or ["systemctl --user does not answer"])[0]
    if why is not None:
        instead = "start `agent run` another way: in tmux, with nohup, or by a cron line `@reboot agent run`"
        raise CommandError(ExitCode.ERROR, f"no systemd user services here ({why}): {instead}")


def install(text: str, token: str | None, *, start: bool = True) -> None:
    """Put the unit (and the token) into place and enable it. Repeating it brings the unit up to date and restarts it."""
    require_systemd()
    if token is not None:
        atomic.make_folder(os.path.dirname(token_path()))
        atomic.write_file(token_path(), token.encode() + b"\n", 0o600)
    atomic.make_folder(os.path.dirname(unit_path()))
    atomic.write_file(unit_path(), text.encode(), 0o644)
    _systemctl("daemon-reload")
    _systemctl("enable", NAME)
    if start:
        _systemctl("restart", NAME)


def uninstall() -> bool:
    """Stop and remove the service; False when there was none."""
    require_systemd()
    there = os.path.exists(unit_path())
    if there:
        _systemctl("disable", "--now", NAME)
        atomic.remove(unit_path())
        _systemctl("daemon-reload")
    atomic.remove(token_path())
    return there


def state() -> State:
    """Return what systemd says of the service."""
    require_systemd()
    answer = _systemctl("show", NAME, *(f"--property={p}" for p in _SHOWN))
    properties = dict(line.split("=", 1) for line in answer.stdout.splitlines() if "=" in line)
    return State(os.path.exists(unit_path()), properties)


def lingers() -> bool | None:
    """Say whether the user's services outlive the login; None when nobody can say."""
    try:
        answer = subprocess.run(
            ["loginctl", "show-user", str(os.geteuid()), "--property=Linger"], capture_output=True, text=True, timeout=_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() == "Linger=yes"


def _systemctl(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = ["systemctl", "--user", "--no-pager", *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(ExitCode.ERROR, f"`{' '.join(command)}`: {error}") from None
    if check and answer.returncode:
        said = " ".join(answer.stderr.split()) or f"status {answer.returncode}"
        raise CommandError(ExitCode.ERROR, f"`{' '.join(command)}` failed: {said}")
    return answer
