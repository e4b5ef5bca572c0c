"""A machine of its own, booted in a container: systemd as process 1, an overlay of this system's files, a network of its own.

It has simspool installed for all users, in /opt/simspool, and ordinary users with homes on a disk of their own. `kill` is the
power button; what was on its disks is there again after the next `boot`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import simspool.agent
import simspool.sdk
import simspool.spool
import simspool.systemd

PREFIX = "/opt/simspool"
PYTHON = f"{PREFIX}/bin/python"
_PACKAGES = ("systemd-container", "systemd-sysv", "dbus", "libpam-systemd", "e2fsprogs", "util-linux")


class Unavailable(Exception):
    """Raised where no such machine can be had; the text says why."""


class Booted:
    """One machine. Use it as a context manager; `users` are made with homes in /home. Raises Unavailable."""

    def __init__(self, folder: Path, users: Sequence[str]) -> None:
        self.folder, self.users = folder, tuple(users)
        self.root = folder / "root"
        self.home = folder / "home"
        self.boot_seconds: list[float] = []
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._init = 0
        self._mounts: list[Path] = []

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise Unavailable("a machine can only be booted as root")
        _packages()
        try:
            self._build()
            self.boot()
        except (subprocess.SubprocessError, OSError) as error:
            said = getattr(error, "stderr", None) or b""
            self.__exit__()
            raise Unavailable(f"{error} {said!r}") from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            self.thaw()
        self.kill()
        for mount in reversed(self._mounts):
            subprocess.run(["umount", "--lazy", str(mount)], check=False, capture_output=True)

    # ------------------------------------------------------------------ the machine

    def _build(self) -> None:
        scratch = self.folder / "scratch"
        for path in (scratch, self.root, self.home):
            path.mkdir()
        self._mount("-t", "tmpfs", "-o", "size=1g,mode=755", "tmpfs", at=scratch)
        (scratch / "up").mkdir()
        (scratch / "work").mkdir()
        self._mount("-t", "overlay", "-o", f"lowerdir=/,upperdir={scratch}/up,workdir={scratch}/work", "overlay", at=self.root)
        image = scratch / "home.img"
        with image.open("wb") as f:
            f.truncate(256 << 20)
        _run("mkfs.ext4", "-q", str(image))
        self._mount("-o", "loop", str(image), at=self.home)
        for wants in (self.root / "etc/systemd/system").glob("*.wants"):
            shutil.rmtree(wants)  # this system's own services stay out
        for name in ("console-getty.service", "getty.target", "systemd-journal-flush.service", "systemd-tmpfiles-setup.service"):
            (self.root / "etc/systemd/system" / name).unlink(missing_ok=True)
            (self.root / "etc/systemd/system" / name).symlink_to("/dev/null")
        for number, user in enumerate(self.users):
            _run("chroot", str(self.root), "useradd", "--no-create-home", "--user-group", "--uid", str(4200 + number), user)
            (self.home / user).mkdir(mode=0o700)
            os.chown(self.home / user, 4200 + number, 4200 + number)
        self._install()

    def _install(self) -> None:
        """A copy of the tree under test in an environment of its own, with the dependencies of the one that runs the tests."""
        prefix = Path(f"{self.root}{PREFIX}")
        _run(sys.executable, "-m", "venv", "--without-pip", str(prefix))
        packages = next(prefix.glob("lib/python*/site-packages"))
        for room in (simspool.agent, simspool.sdk, simspool.spool, simspool.systemd):
            source = Path(str(room.__file__)).parent
            shutil.copytree(source, packages / "simspool" / room.__name__.split(".")[1], ignore=shutil.ignore_patterns("__pycache__"))
        dependencies = sysconfig.get_path("purelib")
        (packages / "dependencies.pth").write_text(dependencies + "\n")
        _run(sys.executable, "-m", "compileall", "-q", str(packages / "simspool"))
        for place in (os.path.realpath(sys.executable), dependencies):
            for parent in Path(place).parents:
                inside = Path(f"{self.root}{parent}")
                inside.chmod(inside.stat().st_mode | 0o055)

    def boot(self) -> float:
        """Switch it on and wait until it has started everything; returns the seconds that took."""
        began = time.monotonic()
        command = ["systemd-nspawn", "--quiet", "--directory", str(self.root), "--boot", "--register=no", "--keep-unit"]
        command += ["--private-network", f"--machine=simspool{os.getpid()}", f"--bind={self.home}:/home", "systemd.unit=multi-user.target"]
        environment = dict(os.environ)
        if any(p.startswith("/tmp/") for p in (os.path.realpath(sys.executable), sysconfig.get_path("purelib"))):
            environment["SYSTEMD_NSPAWN_TMPFS_TMP"] = "0"  # else a fresh /tmp hides them
        with open(self.folder / "console", "ab") as console:
            self._nspawn = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment, start_new_session=True
            )
        state = ""
        while state not in {"running", "degraded"}:
            if self._nspawn.poll() is not None or time.monotonic() - began > 60:
                raise Unavailable(f"it does not boot ({state}): {(self.folder / 'console').read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
            children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
            self._init = int(children[0]) if children else 0
            state = self.run("systemctl", "is-system-running", check=False).stdout.strip() if self._init else ""
        self.boot_seconds.append(time.monotonic() - began)
        return self.boot_seconds[-1]

    def kill(self) -> None:
        """Cut its power."""
        if self._nspawn is not None:
            if self._init:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._init, signal.SIGKILL)
            try:
                self._nspawn.wait(20)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait(20)
            self._nspawn, self._init = None, 0

    def freeze(self) -> None:
        """Let the disk of the homes hang: whoever writes to it waits, and cannot be killed."""
        _run("fsfreeze", "--freeze", str(self.home))

    def thaw(self) -> None:
        """Let the disk go on. Harmless when it does."""
        subprocess.run(["fsfreeze", "--unfreeze", str(self.home)], check=False, capture_output=True, timeout=30)

    def _mount(self, *arguments: str, at: Path) -> None:
        _run("mount", *arguments, str(at))
        self._mounts.append(at)

    # ------------------------------------------------------------------ in it

    def command(self, *words: str, user: str | None = None, env: dict[str, str] | None = None) -> list[str]:
        """Return the command line that runs these words in the machine, as root or a user, with a clean environment."""
        known = {"PATH": f"{PREFIX}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": f"/home/{user}" if user else "/root"}
        if user:
            known["XDG_RUNTIME_DIR"] = f"/run/user/{4200 + self.users.index(user)}"
        pairs = [f"{k}={v}" for k, v in {**known, **(env or {})}.items()]
        become = ["runuser", "-u", user, "--"] if user else []
        enter = ["nsenter", "--target", str(self._init), "--mount", "--uts", "--ipc", "--net", "--pid", f"--wd={self.root}"]
        return [*enter, "--", *become, "env", "-i", "-C", known["HOME"], *pairs, *words]

    def run(
        self, *words: str, user: str | None = None, check: bool = True, env: dict[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it and wait."""
        done = subprocess.run(
            self.command(*words, user=user, env=env), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(words)}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
        return done

    def python(self, program: str, *arguments: str, user: str | None = None, **options: Any) -> str:
        """Run a Python program in it and return what it prints."""
        return self.run(PYTHON, "-P", "-c", program, *arguments, user=user, **options).stdout

    def show(self, unit: str, name: str, user: str | None = None) -> str:
        """Return a property of a unit, of the system or of a user's own manager."""
        scope = ["--user"] if user else []
        return self.run("systemctl", *scope, "show", "--value", f"--property={name}", unit, user=user).stdout.strip()

    def journal(self, unit: str) -> str:
        """Return what a system unit logged, and what systemd says of it."""
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit", unit).stdout


def until(what: str, found: Callable[[], Any], *, timeout: float = 60.0) -> Any:
    """Return the first true value; fails with `what` when there is none in time."""
    deadline = time.monotonic() + timeout
    while True:
        value = found()
        if value:
            return value
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def _packages() -> None:
    if all(shutil.which(tool) for tool in ("systemd-nspawn", "dbus-daemon", "mkfs.ext4", "nsenter", "fsfreeze")):
        return
    if shutil.which("apt-get") is None:
        raise Unavailable(f"needed: {', '.join(_PACKAGES)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run(["apt-get", "update", "-q"], check=True, capture_output=True, timeout=200, env=environment)
        subprocess.run(["apt-get", "install", "-q", "-y", *_PACKAGES], check=True, capture_output=True, timeout=400, env=environment)
    except (subprocess.SubprocessError, OSError) as error:
        raise Unavailable(f"{', '.join(_PACKAGES)} cannot be installed: {error}") from None
