"""A run's totals of energy and emissions: read back from what agents have recorded in it, so that they go on over an agent's restart."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from simspool.spool import Kind, RunFolder, SpoolError, Tail
from simspool.spool.frames import STEP, MetricBatch

ENERGY, EMISSIONS = "sustainability.energy_consumed", "sustainability.emissions"


@dataclass(slots=True)
class Ledger:
    """Totals so far: `energy` in kWh, `emissions` in kg CO2eq, and how many samples there are."""

    energy: float = 0.0
    emissions: float = 0.0
    count: int = 0

    def add(self, energy: float, emissions: float) -> dict[str, float]:
        """Add an interval; return it and the new totals, as they are recorded: totals are the sums of the recorded deltas, in order."""
        self.energy += energy
        self.emissions += emissions
        self.count += 1
        return {
            f"{ENERGY}.total": self.energy, f"{ENERGY}.delta": energy,
            f"{EMISSIONS}.total": self.emissions, f"{EMISSIONS}.delta": emissions,
        }  # fmt: skip


def read_ledger(run: RunFolder) -> Ledger:
    """Return what agents have recorded in a run. A writer that cannot be read is left out."""
    found = Ledger()
    for writer in run.writer_ids():
        with contextlib.suppress(OSError, SpoolError), Tail(run.writer(writer), run.id) as tail:
            _read(tail, found)
    return found


def _read(tail: Tail, found: Ledger) -> None:
    is_agents = False
    for chunk in tail.read(dead=True):
        for item in chunk.items:
            if not is_agents:
                if isinstance(item, MetricBatch) or item.kind != Kind.ATTACH or (item.body or {}).get("reason") != "agent":
                    return  # a script's
                is_agents = True
            if isinstance(item, MetricBatch) and item.kind == Kind.RESOURCES:
                for row in item.rows:
                    values = item.values(row)
                    energy = values.get(f"{ENERGY}.total")
                    if energy is not None and energy >= found.energy:
                        found.energy, found.emissions = energy, values[f"{EMISSIONS}.total"]
                        found.count = max(found.count, row[STEP] + 1)
