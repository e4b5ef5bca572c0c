"""The examples in C, Fortran and shell, compiled, beside a real agent: every point is there, and what diverges is stopped in time."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from producers import EXAMPLES, compiler
from victims import Site

from simspool.spool import open_spool

BUILDS: dict[str, Callable[[Path], list[str]]] = {
    "c": lambda folder: [compiler("gcc", EXAMPLES / "heat.c", folder / "heat", "-lm")],
    "fortran": lambda folder: [compiler("gfortran", EXAMPLES / "simspool.f90", folder / "heat", str(EXAMPLES / "heat.f90"))],
    "sh": lambda folder: ["sh", str(EXAMPLES / "heat.sh")],
}
STEPS, RATIO = 400, 0.3


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A spool, a server and an agent for all programs; `agent` is the command."""
    folder = tmp_path_factory.mktemp("site")
    commands = folder / "bin"
    commands.mkdir()
    (commands / "agent").write_text(f'#!/bin/sh\nexec {sys.executable} -W error -m simspool.agent "$@"\n')
    (commands / "agent").chmod(0o755)
    with Site(folder, PATH=f"{commands}:{os.environ['PATH']}") as found:
        yield found


def heat(cells: int, steps: int, ratio: float) -> Iterator[tuple[float, float]]:
    """The same computation, in the same order: (peak, centre) of each step."""
    u = [0.0] * cells
    u[cells // 2] = 1.0
    for _ in range(steps):
        u[1:-1] = [u[i] + ratio * (u[i - 1] - 2.0 * u[i] + u[i + 1]) for i in range(1, cells - 1)]
        yield max(map(abs, u)), u[cells // 2]


def start(site: Site, folder: Path, language: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Start a program in a run of its own, which a shell began."""
    command = " ".join([*BUILDS[language](folder), *map(str, arguments)])
    script = f'eval "$(agent log run --export --name {folder.name})"\n{command}\nagent log end --code $?\n'
    with (folder / "output").open("wb") as output:
        return subprocess.Popen(["bash", "-c", script], env=site.environment, cwd=folder, stdout=output, stderr=output)


def found(site: Site, name: str) -> dict[str, Any] | None:
    """Return the run as the server has it, when it has ended there."""
    for run in site.server.get("/runs", filters=[f"name == {name}"], count=10)["data"]:
        if run["status"] not in {"created", "running"}:
            return dict(run)
    return None


@pytest.mark.parametrize("language", BUILDS)
def test_a_whole_run_arrives_exactly(site: Site, tmp_path: Path, language: str) -> None:
    cells = 60
    program = start(site, tmp_path, language, cells, STEPS, RATIO)
    assert program.wait(60) == 0, (tmp_path / "output").read_text()
    run = site.until(lambda: found(site, tmp_path.name))
    assert run["status"] == "completed"
    wanted = list(heat(cells, STEPS, RATIO))
    for column, metric in enumerate(("peak", "centre")):
        points = site.until(lambda metric=metric: p if len(p := site.server.points(run["id"], metric)) >= STEPS else None)
        assert [step for step, _ in points] == list(range(1, STEPS + 1))
        assert [value for _, value in points] == [row[column] for row in wanted], "the numbers are not exactly those that were printed"
    assert any("steps are done" in event for event in site.server.events(run["id"]))
    assert not list((site.spool / "quarantine").glob(f"*{run['id']}*"))


@pytest.mark.parametrize("language", BUILDS)
def test_a_run_that_diverges_is_stopped_by_the_alert_that_it_defines(site: Site, tmp_path: Path, language: str) -> None:
    cells, steps = (50_000, 2_000_000) if language != "sh" else (2_000, 200_000)  # for minutes
    program = start(site, tmp_path, language, cells, steps, 0.51)
    code = program.wait(60)
    assert code != 0, (tmp_path / "output").read_text()
    run = site.until(lambda: found(site, tmp_path.name))
    assert run["status"] == "terminated"
    client = site.client("server")
    (alert,) = client.get_alerts(run_id=run["id"], critical_only=True)
    assert "diverged" in str(alert)
    peaks = [value for _, value in site.server.points(run["id"], "peak")]
    assert 100 < len(peaks) < steps / 2
    assert not peaks[-1] <= 1e6


def test_a_sites_alert_stops_a_program_that_knows_of_none(tmp_path: Path) -> None:
    (tmp_path / "alerts.toml").write_text(
        '[[alerts]]\nname = "no numbers"\nmetric = "x"\nrule = "is not finite"\nabort = true\nwhere = "folder=/quiet"\n'
    )
    numbers = ('{"metrics": {"x": 1}}', '{"metrics": {"x": -NAN}}')
    program = "; ".join(f"echo '{line}' >> $SIMSPOOL_INBOX/a.jsonl; sleep 1" for line in numbers) + "; sleep 600"
    (tmp_path / "site").mkdir()
    with Site(tmp_path / "site", SIMSPOOL_ALERTS=str(tmp_path / "alerts.toml")) as site:
        script = f'eval "$({sys.executable} -m simspool.agent log run --export --name quiet --folder /quiet)"; {program}'
        shell = subprocess.Popen(["bash", "-c", script], env=site.environment)
        assert shell.wait(60) < 0
        run = site.until(lambda: found(site, "quiet"))
        assert run["status"] == "terminated"
        (run_id,) = open_spool(site.spool).run_ids()
        assert math.isnan(site.server.points(run_id, "x")[-1][1] or math.nan)
