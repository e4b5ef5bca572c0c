"""What all faults have in common: a stage (spool, state, server, scripts, agents as real processes), and what a part of the campaign is."""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from real_server import RealServer

HERE = Path(__file__).parent
SCALES = ("sample", "quick", "full")


class NotHere(Exception):
    """Raised by a part that this machine has no means for; the message says what is missing."""


@dataclass
class Part:
    """One fault played in one way: how often, what was violated (`I1: ...`), and its own figures."""

    fault: str
    name: str
    n: int = 0
    violations: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""
    seconds: float = 0.0
    seed: int = 0

    def tried(self, violations: Iterable[str], label: str = "") -> None:
        """Count one trial, and what it violated."""
        self.n += 1
        self.violations += [f"{text} [{label}]" if label else text for text in violations]

    def add(self, **figures: float) -> None:
        """Add to the part's own figures."""
        for name, value in figures.items():
            self.figures[name] = round(self.figures.get(name, 0) + value, 3)


@dataclass
class Context:
    """How large the campaign is, its seed, and where it may write. One server serves all trials that do not kill it."""

    seed: int
    scale: str
    folder: Path
    say: Callable[[str], None] = lambda _: None
    _server: RealServer | None = None

    def pick(self, sample: int, quick: int, full: int) -> int:
        """Return the number for this scale."""
        return (sample, quick, full)[SCALES.index(self.scale)]

    def random(self, name: str) -> random.Random:
        """Return a part's own choices: the same seed makes the same ones, whatever ran before."""
        return random.Random(f"{self.seed} {name}")

    @property
    def server(self) -> RealServer:
        """The shared server, started when first asked for."""
        if self._server is None:
            self._server = RealServer(self.folder / "server")
            self._server.start()
        return self._server

    def close(self) -> None:
        """End the shared server."""
        if self._server is not None:
            self._server.kill(signal.SIGTERM)
            self._server = None

    def room(self) -> Path:
        """Return an empty folder for one trial."""
        return Path(tempfile.mkdtemp(dir=self.folder))


PARTS: list[tuple[str, str, Callable[[Context, Part], None]]] = []


def part(fault: str, name: str) -> Callable[[Callable[[Context, Part], None]], Callable[[Context, Part], None]]:
    """Enter a function into the campaign."""

    def enter(play: Callable[[Context, Part], None]) -> Callable[[Context, Part], None]:
        PARTS.append((fault, name, play))
        return play

    return enter


MODULES = (
    "fault_kills", "fault_server_kills", "fault_power", "fault_bytes", "fault_disks", "fault_clock", "fault_server", "fault_places",
    "fault_network", "fault_releases",
)  # fmt: skip


def load() -> None:
    """Enter all parts."""
    for name in MODULES:
        importlib.import_module(name)
    PARTS.sort(key=lambda p: int(p[0].removeprefix("F")))


def play(context: Context, fault: str, name: str, how: Callable[[Context, Part], None]) -> Part:
    """Play one part; an error of the harness itself counts as a violation, so that nothing passes by breaking."""
    out, began = Part(fault, name, seed=context.seed), time.monotonic()
    try:
        how(context, out)
    except NotHere as error:
        out.skipped = str(error)
    except Exception as error:
        out.violations.append(f"harness: {type(error).__name__}: {error}"[:2000])
    out.seconds = time.monotonic() - began
    return out


# ---------------------------------------------------------------------- scripts and their ledgers


@dataclass
class Said:
    """What a script's calls said, read from its ledger."""

    run: str = ""
    yes: dict[str, list[str]] = field(default_factory=lambda: {"metrics": [], "event": [], "file": []})
    no: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)
    ended: bool = False

    @classmethod
    def read(cls, path: Path) -> Said:
        """Read a ledger."""
        said = cls()
        for line in path.read_text().splitlines() if path.exists() else ():
            word, _, rest = line.partition(" ")
            kind, _, which = rest.partition(" ")
            if word == "run":
                said.run = "" if kind == "-" else kind
            elif word == "yes":
                said.yes[kind].append(which)
            elif word == "no":
                said.no[kind] += 1
            elif word == "try":
                said.tried[kind] += 1
            else:
                said.ended = said.ended or word == "end"
        return said


class Script:
    """A running ledger script."""

    def __init__(self, stage: Stage, ledger: Path, options: dict[str, Any], before: tuple[str, ...], env: dict[str, str]) -> None:
        self.ledger, self.errors = ledger, ledger.with_suffix(".stderr")
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*before, stage.python, str(HERE / "ledger_script.py"), str(ledger), json.dumps(options)],
                env={**stage.environment, **env}, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
            )  # fmt: skip
        self.killed = False

    @property
    def said(self) -> Said:
        """What it has said so far."""
        return Said.read(self.ledger)

    def wait(self, timeout: float = 120) -> Script:
        """Wait for its end."""
        self.process.wait(timeout)
        return self

    def wait_for(self, calls: int, timeout: float = 60) -> Script:
        """Wait until it has made so many calls."""
        until(lambda: sum(self.said.tried.values()) >= calls or self.process.poll() is not None, timeout)
        return self

    def kill(self) -> Script:
        """SIGKILL it and its children."""
        self.killed = True
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)
        return self


def until(condition: Callable[[], object], timeout: float = 60) -> None:
    """Wait for a condition. Raises TimeoutError."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:.0f} s in vain")
        time.sleep(0.02)


# ---------------------------------------------------------------------- stages


class Stage:
    """A spool, the agent's state, and scripts and agents on them, all real processes. `url` is what the agents are told of the server."""

    def __init__(
        self, folder: Path, server: RealServer | None, *, spool: Path | None = None, state: Path | None = None, url: str = "",
        env: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.server, self.python = folder, server, sys.executable
        self.spool, self.state = spool or folder / "spool", state or folder / "state"
        self.scripts: list[Script] = []
        self.agents: list[subprocess.Popen[bytes]] = []
        runtime = folder / "rt"
        runtime.mkdir(mode=0o700, exist_ok=True)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SIMSPOOL_", "SIMVUE_"))},
            **(server.environment if server is not None else {}), "SIMSPOOL_DIR": str(self.spool), "SIMSPOOL_STATE": str(self.state),
            "SIMSPOOL_AGENT": "off", "XDG_RUNTIME_DIR": str(runtime), "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **(env or {}),
        }  # fmt: skip
        if url:
            self.environment["SIMSPOOL_URL"] = url

    def script(self, *before: str, env: dict[str, str] | None = None, **options: Any) -> Script:
        """Start a script that records; `before` is a program that starts it."""
        made = Script(self, self.folder / f"ledger-{len(self.scripts)}", options, before, env or {})
        self.scripts.append(made)
        return made

    def record(self, scripts: int = 1, **options: Any) -> None:
        """Have some scripts record, side by side, to their ends."""
        for made in [self.script(**options) for _ in range(scripts)]:
            made.wait()

    def sync(self, *before: str, options: tuple[str, ...] = (), env: dict[str, str] | None = None, timeout: float = 240) -> Done:
        """Run `agent sync` to its end."""
        return self.command("sync", *options, before=before, env=env, timeout=timeout)

    def command(self, *words: str, before: tuple[str, ...] = (), env: dict[str, str] | None = None, timeout: float = 120) -> Done:
        """Run an `agent` command to its end, with `--json`."""
        done = subprocess.run(
            [*before, self.python, "-m", "simspool.agent", *words, "--json"], env={**self.environment, **(env or {})},
            capture_output=True, timeout=timeout, check=False,
        )  # fmt: skip
        return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def agent(self, *before: str, env: dict[str, str] | None = None, options: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """Start `agent run`."""
        with open(self.folder / "agent.log", "ab") as log:
            made = subprocess.Popen(
                [*before, self.python, "-m", "simspool.agent", "run", *options],
                env={**self.environment, **(env or {})}, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.agents.append(made)
        return made

    def settle(self, *processes: subprocess.Popen[bytes]) -> None:
        """End agents: SIGTERM, and SIGKILL for those that do not."""
        for one in processes or self.agents:
            if one.poll() is None:
                os.killpg(one.pid, signal.SIGTERM)
                try:
                    one.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(one.pid, signal.SIGKILL)
                    one.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.settle()
        for script in self.scripts:
            if script.process.poll() is None:
                script.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Done:
    """How an `agent` command ended."""

    code: int
    output: str
    errors: str

    @property
    def report(self) -> dict[str, Any]:
        """What it printed as JSON; empty when it printed none."""
        try:
            found = json.loads(self.output)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def sync_at_once(*stages: Stage) -> list[Done]:
    """Run `agent sync` on all of these at the same time."""
    with ThreadPoolExecutor(len(stages)) as pool:
        return list(pool.map(Stage.sync, stages))
