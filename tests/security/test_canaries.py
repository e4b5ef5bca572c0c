"""A36, A23: secrets of many kinds are given to the whole product, and then looked for in every byte that it left or said."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from certificates import private
from tls_server import SmallServer

SCRIPT = """
import os, sys
from simspool.sdk import Client, Run
try:
    with Run() as run:
        run.init("canary", record_shell_vars={"CANARY_*", "PLAIN_*"}, folder="/canaries")
        run.log_metrics({"loss": 0.5})
        run.log_event("nothing secret")
        run.add_process("solver", "/bin/true", "--api-key", os.environ["CANARY_ARGV_KEY"], "plain-argument")
        raise RuntimeError("cannot open https://me:" + os.environ["CANARY_TRACE_PASSWORD"] + "@host/")
except RuntimeError:
    pass
print(repr(run), [r["name"] for r in Client(spool=os.environ["SIMSPOOL_DIR"]).get_runs()])
"""

CRASH = """
import sys
from simspool.agent.cli import main
from simspool.agent.targets import settings
def broken(*_):
    raise RuntimeError("something nobody foresaw")
settings.own_targets = broken
main(["target", "ls"])
"""


class Stage:
    """The whole product on one stage: all that it says and leaves, and the secrets that it was given."""

    def __init__(self, folder: Path, server: SmallServer) -> None:
        self.folder, self.said = folder, b""
        self.work = folder / "work"
        self.work.mkdir()
        self.canaries = {name: f"{name}-{secrets.token_hex(12)}" for name in (
            "token", "table", "env", "argv", "trace", "git", "userinfo", "proxy", "mail", "exec",
        )}  # fmt: skip
        c = self.canaries
        self.env = {
            **os.environ, "SIMSPOOL_DIR": str(folder / "spool"), "SIMSPOOL_STATE": str(folder / "state"), "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder / "rt"), "CANARY_ENV_SECRET": c["env"], "CANARY_ARGV_KEY": c["argv"],
            "CANARY_TRACE_PASSWORD": c["trace"], "HTTPS_PROXY": f"http://me:{c['proxy']}@127.0.0.1:9", "PLAIN_MODE": "fast",
            "PLAIN_URL": f"https://me:{c['userinfo']}@host/x",
        }  # fmt: skip
        private(folder / "table.token", c["table"] + "\n")
        private(folder / "mail.password", c["mail"] + "\n")
        private(folder / "proxy.auth", f"me:{c['proxy']}\n")
        (folder / "results").mkdir()
        (self.work / ".git").mkdir()
        (self.work / ".git" / "config").write_text(f'[remote "origin"]\n\turl = https://me:{c["git"]}@host/x.git\n')
        (self.work / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
        private(self.work / "simspool.toml", f"""
[server]
proxy_auth_file = "{folder}/proxy.auth"
proxy = "http://127.0.0.1:9"
[target.results]
kind = "directory"
path = "{folder}/results"
[target.refusing]
kind = "simvue"
url = "{server.url}"
token_file = "{folder}/table.token"
required = false
[notify.mail]
to = ["me@example.org"]
smtp = "127.0.0.1:9"
user = "me"
password_file = "{folder}/mail.password"
""")  # fmt: skip

    def run(self, *words: object, env: Mapping[str, str] | None = None, code: int | None = 0) -> str:
        """Run a program of Python's, and keep what it says."""
        done = subprocess.run(
            [sys.executable, *map(str, words)], env={**self.env, **(env or {})}, cwd=self.work, capture_output=True, timeout=90, check=False
        )
        self.said += done.stdout + done.stderr
        text = (done.stdout + done.stderr).decode()
        assert code is None or done.returncode == code, text
        return text

    def agent(self, *words: object, env: Mapping[str, str] | None = None, code: int | None = 0) -> str:
        """Run a command."""
        return self.run("-m", "simspool.agent", *words, env=env, code=code)

    def left(self, *but: Path) -> Iterator[tuple[Path, bytes]]:
        """Yield all files that are left, without those that hold secrets on purpose."""
        known = {*but, *(self.folder / name for name in ("table.token", "mail.password", "proxy.auth")), self.work / ".git" / "config"}
        for base, _, files in os.walk(self.folder):
            for name in files:
                path = Path(base, name)
                if path not in known and path.is_file() and not path.is_symlink():
                    yield path, path.read_bytes()


class ProcessList(threading.Thread):
    """Reads the machine's process list all the time, as any user may. `found` are the command lines with a secret in them."""

    def __init__(self, wanted: list[bytes]) -> None:
        super().__init__(daemon=True)
        self._wanted, self._over, self.found, self.looks = wanted, threading.Event(), set[bytes](), 0

    def run(self) -> None:
        while not self._over.wait(0.01):
            self.looks += 1
            for name in os.listdir("/proc"):
                if name.isdigit():
                    try:
                        line = Path("/proc", name, "cmdline").read_bytes()
                    except OSError:
                        continue
                    if any(secret in line for secret in self._wanted):
                        self.found.add(line)

    def stop(self) -> None:
        """End it."""
        self._over.set()
        self.join(20)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with SmallServer(401, body={"detail": "no"}) as server:
        yield Stage(tmp_path, server)


def start(stage: Stage, *words: object, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "simspool.agent", *map(str, words)], env={**stage.env, **env}, cwd=stage.work, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def end(stage: Stage, process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=40)
    stage.said += said


def await_(condition: object, what: str) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not in time"
        time.sleep(0.05)


def test_no_secret_is_in_anything_that_is_left_or_said(stage: Stage) -> None:
    folder, c = stage.folder, stage.canaries
    server = start(stage, "serve", "--data", folder / "data", "--port", "0", env={})
    agent: subprocess.Popen[bytes] | None = None
    try:
        await_((folder / "data" / "url").exists, "the server")
        token = (folder / "data" / "token").read_text().strip()
        url = (folder / "data" / "url").read_text().strip()
        # the server of this stage is reached directly; the proxy of the file is for the tries that fail
        direct = {"SIMSPOOL_URL": url, "SIMSPOOL_TOKEN": token}
        watched = ProcessList([text.encode() for name, text in c.items() if name not in {"argv", "exec"}] + [token.encode()])
        watched.start()
        stage.run("-c", SCRIPT, env=direct)
        config = (stage.work / "simspool.toml").read_text()
        stage.agent("sync", "--timeout", "5", env=direct, code=None)  # through a proxy that is not there
        private(stage.work / "simspool.toml", config.replace("\nproxy", "\n# proxy"))
        agent = start(stage, "run", env=direct)
        await_(lambda: list((folder / "spool/agent/hosts").glob("*")), "the agent")
        stage.run("-c", SCRIPT, env=direct)
        secret = f"--token={c['exec']}"
        stage.agent("exec", "--json", "--", "sh", "-c", "exit 4", "x", secret, f"https://me:{c['exec']}@host", env=direct, code=4)
        for words in (("sync", "--timeout", "20"), ("status",), ("status", "--json"), ("target", "ls"), ("target", "ls", "--json")):
            stage.agent(*words, env=direct, code=None)
        stage.agent("target", "test", "--all", env=direct, code=None)
        stage.agent("verify", "--all", env=direct, code=None)
        stage.agent("check", env=direct, code=None)
        stage.agent("notify", "test", env=direct, code=None)
        stage.agent("service", "install", "--user", "--dry-run", env=direct, code=None)
        stage.agent("sync", "--timeout", "10", env={**direct, "SIMSPOOL_TOKEN": c["token"]}, code=None)
        stage.agent("sync", env={**direct, "SIMSPOOL_URL": f"http://me:{c['userinfo']}@127.0.0.1:9"}, code=2)
        stage.agent("status", env={**direct, "SIMSPOOL_URL": f"http://127.0.0.1:9?token={c['userinfo']}"}, code=2)
        crash = stage.run("-c", CRASH, env={**direct, "SIMSPOOL_DEBUG": "1"}, code=1)
        assert "Traceback" in crash
        for run in stage.agent("ls", "--json", env=direct).splitlines():
            stage.agent("cat", run.split('"id": "')[1].split('"')[0], env=direct, code=None)
        end(stage, agent)
        agent = None
        (folder / "bundles").mkdir()
        packed = stage.agent("bundle", "create", "--output", folder / "bundles", env=direct, code=None)
        if "No such command" not in packed:
            bundles = list((folder / "bundles").iterdir())
            assert bundles, packed
            stage.agent("bundle", "import", bundles[0], "--spool", folder / "far", "--allow-unsigned", env=direct, code=None)
        if "doctor" in stage.agent("--help"):
            stage.agent("doctor", "--quick", env=direct, code=None)
        watched.stop()
    finally:
        for process in filter(None, (agent, server)):
            end(stage, process)
    assert watched.looks > 100
    assert watched.found == set()
    everything = {"what was said": stage.said}
    held = {folder / "data" / "token", folder / "data" / "secret"}
    everything |= {str(path.relative_to(folder)): data for path, data in stage.left(*held)}
    assert sum(name.startswith("spool/runs/") for name in everything) > 5
    assert any(name.startswith("results/") for name in everything)
    assert any(b"plain-argument" in data for data in everything.values())  # the search does see what is recorded
    assert any(b"cannot open https://" in data for data in everything.values())
    wanted = {**c, "the server's token": token}
    leaks = [(where, name) for where, data in everything.items() for name, text in wanted.items() if text.encode() in data]
    assert leaks == []
