"""F10: wall clocks that step, stand still and lie; boot clocks that jump, as after a suspend."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

from checker import check_drained
from trials import Context, NotHere, Part, Script, Stage, part

HOUR, DAY = 3600, 86400
STEPS = {"an hour back": -HOUR, "an hour on": HOUR, "a year back": -365 * DAY, "a year on": 365 * DAY, "1970": -20_000 * DAY}


class WrongClock:
    """A wall clock for one process, which can be set at any moment; its other clocks go on. Raises NotHere without a C compiler."""

    def __init__(self, folder: Path, name: str) -> None:
        library, offset = folder / "wrong_clock.so", folder / f"clock-{name}"
        if not library.exists():
            if shutil.which("gcc") is None:
                raise NotHere("wrong clocks need a C compiler: apt-get install gcc libc6-dev")
            source = str(Path(__file__).with_name("wrong_clock.c"))
            subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), source, "-ldl"], check=True, capture_output=True)
        offset.write_bytes(bytes(8))
        self._at = offset
        self.environment = {"LD_PRELOAD": str(library), "WRONG_CLOCK": str(offset)}

    def step(self, seconds: int) -> None:
        """Set it wrong by so many seconds."""
        with self._at.open("r+b") as f:
            f.write(struct.pack("<q", seconds))


@part("F10", "the wall clock steps in the middle: of the script, the agent, both; an alert that may abort is defined")
def wall_steps(c: Context, out: Part) -> None:
    cases = [(step, who) for step in STEPS for who in ("script", "agent", "both")]
    for step, who in c.random("steps").sample(cases, c.pick(2, 6, len(cases))):
        with Stage(c.room(), c.server) as stage:
            script_clock, agent_clock = WrongClock(stage.folder, "script"), WrongClock(stage.folder, "agent")
            script = stage.script(env=script_clock.environment, calls=1500, rate=500, rule=True, files=1)
            stage.agent(env=agent_clock.environment)
            script.wait_for(400)
            for clock, name in ((script_clock, "script"), (agent_clock, "agent")):
                if who in {name, "both"}:
                    clock.step(STEPS[step])
            script.wait_for(1000)
            for clock in (script_clock, agent_clock):
                clock.step(0)
            script.wait()
            stage.settle()
            out.tried([*_no_abort(script), *check_drained(stage)], f"{step}, {who}")


@part("F10", "whole lives under a wrong wall clock; another agent every time")
def wrong_clocks(c: Context, out: Part) -> None:
    """Each incarnation of the agent has another idea of the time, so that its journals are not in the order of their ids."""
    choice = c.random("wrong")
    for _ in range(c.pick(1, 2, 12)):
        with Stage(c.room(), c.server) as stage:
            for step in choice.sample(list(STEPS.values()), 3):
                clock = WrongClock(stage.folder, "life")
                clock.step(step)
                stage.script(env=clock.environment, calls=200, files=1).wait()
                stage.sync(env=clock.environment)
                if choice.random() < 0.5:
                    shutil.rmtree(stage.state, ignore_errors=True)
            out.tried(check_drained(stage))


@part("F10", "the boot clock jumps days, as after a suspend")
def boot_jumps(c: Context, out: Part) -> None:
    """A time namespace: the script's boot and monotonic clocks are days ahead of the agent's."""
    probe = subprocess.run(["unshare", "-T", "--boottime", "1000", "true"], check=False, capture_output=True)
    if probe.returncode:
        raise NotHere(f"no time namespaces here: {probe.stderr.decode(errors='replace').strip()}")
    for _ in range(c.pick(1, 2, 8)):
        days = c.random(f"boot {out.n}").choice([1, 30, 3000])
        ahead = ("unshare", "-T", "--boottime", str(days * 86400), "--monotonic", str(days * 86400), "--fork")
        with Stage(c.room(), c.server) as stage:
            stage.agent()
            script = stage.script(*ahead, calls=600, rate=1000, rule=True).wait()
            stage.settle()
            later = stage.script(calls=100).wait()
            done = stage.sync(*ahead)
            wrong = [] if done.code == 0 else [f"I8: a sync {days} days ahead ended with {done.code}: {done.errors[-300:]}"]
            out.tried([*wrong, *_no_abort(script), *_no_abort(later), *check_drained(stage)], f"{days} days")


def _no_abort(script: Script) -> list[str]:
    said = script.errors.read_text(errors="replace") if os.path.exists(script.errors) else ""
    return [f"I9: aborted, and no value was near the threshold: {said[-300:]}"] if "abort" in said.lower() else []
