"""Putting units into systemd's folders, taking them out again, and asking systemd how they do: a user's own manager, or the system's."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import subprocess
from dataclasses import dataclass

from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.spool import atomic

from . import unit

_TIMEOUT = 60
_START_TIMEOUT = 20 * 60  # longer than the unit's own
_SHOWN = {
    "agent": ("LoadState", "UnitFileState", "ActiveState", "SubState", "StatusText", "Result", "MainPID", "NRestarts", "ExecMainStatus"),
    "timer": ("LoadState", "UnitFileState", "ActiveState", "SubState", "LastTriggerUSec", "NextElapseUSecMonotonic", "Result"),
}
SYSTEM_FOLDER = "/etc/systemd/system"
TOKEN_FOLDER = "/etc/simspool/tokens"  # noqa: S105 - a folder's name
_DROP_IN = "simspool.conf"


@dataclass(frozen=True, slots=True)
class State:
    """What systemd says. `form`: agent, timer, or nothing when neither is installed; `last_sync`: how a timer's last sync ended."""

    form: str
    properties: dict[str, str]
    last_sync: str = ""

    @property
    def active(self) -> bool:
        """Whether it runs (or, a timer, waits) now."""
        return bool(self.form) and self.properties.get("ActiveState") == "active"


class Manager:
    """The units of one user: in that user's own manager (`instance` None), or in the system's, named after the user.

    Raises CommandError, with what to do instead, where systemd does not answer or refuses.
    """

    def __init__(self, instance: str | None) -> None:
        self.instance = instance
        mark = "" if instance is None else f"@{instance}"
        self.units = {"agent": unit.AGENT.format(mark), "sync": unit.SYNC.format(mark), "timer": unit.TIMER.format(mark)}
        config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
        if instance is None:
            self.folder = os.path.join(config, "systemd", "user")
            self.token_path = os.path.join(config, "simspool", "service-token")
        else:
            self.folder = SYSTEM_FOLDER
            self.token_path = os.path.join(TOKEN_FOLDER, instance)

    def path(self, kind: str) -> str:
        """Return the file that says that this kind (agent, sync, timer) is installed for this user: the unit, or the user's drop-in."""
        name = self.units[kind]
        return os.path.join(self.folder, name) if self.instance is None else os.path.join(self.folder, f"{name}.d", _DROP_IN)

    def template(self, kind: str) -> str:
        """Return the name of the unit file, as it is shipped."""
        return {"agent": unit.AGENT, "sync": unit.SYNC, "timer": unit.TIMER}[kind].format("" if self.instance is None else "@")

    # ------------------------------------------------------------------ doing

    def require(self) -> None:
        """Raise CommandError where this manager does not answer."""
        why = None
        if shutil.which("systemctl") is None:
            why = "there is no systemctl on this machine"
        else:
            answer = self._systemctl("show", "--property=Version", check=False)
            if answer.returncode:
                why = (answer.stderr.strip().splitlines() or ["systemctl does not answer"])[0]
        if why is not None:
            whose = "user" if self.instance is None else "system"
            instead = "start `agent run` another way: in tmux, with nohup, or by a cron line `@reboot agent run`"
            raise CommandError(ExitCode.ERROR, f"no systemd {whose} services here ({why}): {instead}")

    def install(self, form: str, files: dict[str, str], token: str | None, *, start: bool = True) -> None:
        """Put files (path -> text) and the token into place, enable the `agent` or the `timer`, and take out the other one.

        Repeating it brings everything up to date and restarts it.
        """
        self.require()
        self._take_out("timer" if form == "agent" else "agent")
        if token is not None:
            atomic.make_folder(os.path.dirname(self.token_path))
            atomic.write_file(self.token_path, token.encode() + b"\n", 0o600)
        else:
            atomic.remove(self.token_path)
        for path, text in files.items():
            atomic.make_folder(os.path.dirname(path), 0o700 if self.instance is None else 0o755)
            atomic.write_file(path, text.encode(), 0o644)
        self._systemctl("daemon-reload")
        self._systemctl("enable", self.units[form])
        if start:
            self._systemctl("restart", self.units[form], timeout=_START_TIMEOUT)

    def uninstall(self) -> bool:
        """Stop and remove what `install` put; False when there was nothing."""
        self.require()
        there = [self._take_out(form) for form in ("agent", "timer")]
        atomic.remove(self.token_path)
        if self.instance is not None:
            with contextlib.suppress(OSError):  # other users' tokens
                os.rmdir(TOKEN_FOLDER)
                os.rmdir(os.path.dirname(TOKEN_FOLDER))
        return any(there)

    def state(self) -> State:
        """Return what systemd says of what is installed."""
        self.require()
        form = next((form for form in ("agent", "timer") if os.path.exists(self.path(form))), "")
        if not form:
            return State("", {})
        last = self._show(self.units["sync"], ("Result",)).get("Result", "") if form == "timer" else ""
        return State(form, self._show(self.units[form], _SHOWN[form]), last)

    # ------------------------------------------------------------------ parts

    def _take_out(self, form: str) -> bool:
        if not os.path.exists(self.path(form)):
            return False
        kinds = ("agent",) if form == "agent" else ("timer", "sync")
        self._systemctl("disable", "--now", *(self.units[kind] for kind in kinds if kind != "sync"), timeout=_START_TIMEOUT)
        for kind in kinds:
            path = self.path(kind)
            atomic.remove(path)
            if self.instance is not None:
                with contextlib.suppress(OSError):  # an administrator's own drop-ins stay
                    os.rmdir(os.path.dirname(path))
                template = os.path.join(self.folder, self.template(kind))
                stem, suffix = os.path.splitext(self.template(kind))
                if not glob.glob(os.path.join(self.folder, f"{stem}?*{suffix}.d", _DROP_IN)) and not self._enabled(stem, suffix):
                    atomic.remove(template)
        self._systemctl("daemon-reload")
        self._systemctl("reset-failed", *(self.units[kind] for kind in kinds), check=False)
        return True

    def _enabled(self, stem: str, suffix: str) -> list[str]:
        """Instances that somebody enabled by hand."""
        return glob.glob(os.path.join(self.folder, "*.wants", f"{stem}?*{suffix}"))

    def _show(self, name: str, properties: tuple[str, ...]) -> dict[str, str]:
        answer = self._systemctl("show", name, *(f"--property={p}" for p in properties))
        return dict(line.split("=", 1) for line in answer.stdout.splitlines() if "=" in line)

    def _systemctl(self, *arguments: str, check: bool = True, timeout: float = _TIMEOUT) -> subprocess.CompletedProcess[str]:
        command = ["systemctl", *(["--user"] if self.instance is None else []), "--no-pager", *arguments]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CommandError(ExitCode.ERROR, f"`{' '.join(command)}`: {error}") from None
        if check and answer.returncode:
            said = " ".join(answer.stderr.split()) or f"status {answer.returncode}"
            raise CommandError(ExitCode.ERROR, f"`{' '.join(command)}` failed: {said}")
        return answer


def in_container() -> bool:
    """Say whether this machine is a container, as systemd sees it."""
    try:
        return subprocess.run(["systemd-detect-virt", "--container", "--quiet"], timeout=_TIMEOUT, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def lingers() -> bool | None:
    """Say whether the user's services outlive the login; None when nobody can say."""
    try:
        answer = subprocess.run(
            ["loginctl", "show-user", str(os.geteuid()), "--property=Linger"], capture_output=True, text=True, timeout=_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() == "Linger=yes"
