"""Ready-made sets of expressions and tables, given as `preset:NAME` in place of a metric expression."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from .tables import Row, Table, Thermo


class Rows(Protocol):
    """What reads rows out of blocks, with a state from block to block."""

    def rows(self, block: bytes) -> Iterator[Row]: ...


@dataclass(frozen=True, slots=True)
class Preset:
    """What a name stands for: metric expressions, event expressions, and what reads a table, if any."""

    about: str
    metrics: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    table: Callable[[], Rows] | None = None


PRESETS = {
    "table": Preset("columns of numbers (or CSV) under a line of names", table=Table),
    "lammps": Preset(
        "LAMMPS: thermo output, loop times, warnings and errors",
        metrics=(
            r"^Loop time of (?P<loop_time>\S+) on \d+ procs for",
            r"timesteps/s := ^Performance:.* (\S+) timesteps/s",
        ),
        events=(
            r"^(?P<warning>WARNING: .*)",
            r"^(?P<error>ERROR(?: on proc \d+)?: .*)",
        ),
        table=Thermo,
    ),
    "openfoam": Preset(
        "OpenFOAM: residuals, Courant numbers, continuity errors, warnings and errors",
        metrics=(
            r"^Time = (?P<time>[-+.\deE]+)s?$",
            r"residual/{field} := Solving for (?P<field>\w+), Initial residual = ([^\s,]+)",
            r"final residual/{field} := Solving for (?P<field>\w+), .*Final residual = ([^\s,]+)",
            r"iterations/{field} := Solving for (?P<field>\w+), .*No Iterations (\d+)",
            r"Courant/mean := ^Courant Number mean: (\S+)",
            r"Courant/max := ^Courant Number mean: \S+ max: (\S+)",
            r"continuity/local := ^time step continuity errors : sum local = ([^\s,]+)",
            r"continuity/global := ^time step continuity errors : .*global = ([^\s,]+)",
            r"deltaT := ^deltaT = (\S+)",
            r"ExecutionTime := ^ExecutionTime = (\S+) s",
        ),
        events=(
            r"^(?P<warning>--> FOAM Warning.*)",
            r"^(?P<error>--> FOAM FATAL.*)",
            r"^(?P<error>Floating point exception.*)",
        ),
    ),
}
