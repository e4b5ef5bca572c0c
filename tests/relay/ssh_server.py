"""A real sshd on 127.0.0.1, with keys of its own and one user: whoever runs the test."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

import psutil
import pytest

_CONF = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
LogLevel VERBOSE
"""


class SshServer:
    """`key` lets in; `known_hosts` has the host's key. Skips loudly where there is no openssh-server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sshd = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin")
        if self.sshd is None or shutil.which("ssh-keygen") is None:
            pytest.skip("SKIPPED: needs openssh-server and openssh-client")
        folder.mkdir(mode=0o700)
        self.key, self.known_hosts = folder / "key", folder / "known_hosts"
        for name in ("key", "host_key", "other_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        shutil.copy(folder / "key.pub", folder / "authorized_keys")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.trust("host_key")
        (folder / "conf").write_text(_CONF.format(port=self.port, folder=folder))
        self.process: subprocess.Popen[bytes] | None = None

    def trust(self, name: str) -> None:
        """Have known_hosts name the key in this file as the host's."""
        words = (self.folder / f"{name}.pub").read_text().split()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {words[0]} {words[1]}\n")

    def url(self, path: Path) -> str:
        """Return the place's address."""
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{path}"

    @property
    def options(self) -> list[str]:
        """The options with which the command gets in."""
        return ["--ssh-key", str(self.key), "--known-hosts", str(self.known_hosts)]

    def start(self) -> None:
        """Start, and wait until it listens."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([str(self.sshd), "-D", "-e", "-f", str(self.folder / "conf")], stderr=log)
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as found:
                if found.recv(4) == b"SSH-":
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"sshd did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def sessions(self) -> list[psutil.Process]:
        """Return the processes that serve connections."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def cut(self) -> int:
        """Kill every connection; returns how many processes that took."""
        found = self.sessions()
        for one in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        return len(found)

    def stop(self) -> None:
        """End it and every connection."""
        if self.process is not None:
            self.cut()
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
