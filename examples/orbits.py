"""The outer solar system and a few comets, with REBOUND, recorded offline. Kill it at any moment: `--resume` goes on.

    python examples/orbits.py --years 2000 --steps 2000
    python examples/orbits.py --years 2000 --steps 2000 --resume RUN

Metrics: relative energy error, positions of the planets. Events: close encounters of comets with giant planets. Files: snapshots
in REBOUND's own binary form. A resumed run starts at the last snapshot and logs only the steps that are not recorded yet; the
integrator is deterministic, so the record is the one of a run that was never killed.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from pathlib import Path

import rebound

from simspool.sdk import Client, Run
from simspool.sdk.config import load_config

# Sun (with the inner planets), Jupiter, Saturn, Uranus, Neptune, Pluto: mass in solar masses, place in AU, speed in AU a day.
# Applegate, Douglas, Gursel, Sussman, Wisdom (1986), as in REBOUND's own example.
BODIES = {
    "sun": (1.00000597682, (-4.06428567034226e-3, -6.08813756435987e-3, -1.66162304225834e-6),
            (+6.69048890636161e-6, -6.33922479583593e-6, -3.13202145590767e-9)),
    "jupiter": (1 / 1047.355, (+3.40546614227466e0, +3.62978190075864e0, +3.42386261766577e-2),
                (-5.59797969310664e-3, +5.51815399480116e-3, -2.66711392865591e-6)),
    "saturn": (1 / 3501.6, (+6.60801554403466e0, +6.38084674585064e0, -1.36145963724542e-1),
               (-4.17354020307064e-3, +3.99723751748116e-3, +1.67206320571441e-5)),
    "uranus": (1 / 22869.0, (+1.11636331405597e1, +1.60373479057256e1, +3.61783279369958e-1),
               (-3.25884806151064e-3, +2.06438412905916e-3, -2.17699042180559e-5)),
    "neptune": (1 / 19314.0, (-3.01777243405203e1, +1.91155314998064e0, -1.53887595621042e-1),
                (-2.17471785045538e-4, -3.11361111025884e-3, +3.58344705491441e-5)),
    "pluto": (0.0, (-2.13858977531573e1, +3.20719104739886e1, +2.49245689556096e0),
              (-1.76936577252484e-3, -2.06720938381724e-3, +6.58091931493844e-4)),
}  # fmt: skip
PLANETS = tuple(BODIES)[1:]
GIANTS = PLANETS[:4]
YEAR = 365.25
ENCOUNTER_AU = 1.0


def new_simulation(comets: int) -> rebound.Simulation:
    """Return the solar system at its start, with massless comets on orbits that cross Jupiter's."""
    sim = rebound.Simulation()
    sim.G = 0.01720209895**2  # Gauss's constant: AU, days, solar masses
    for mass, place, speed in BODIES.values():
        sim.add(m=mass, x=place[0], y=place[1], z=place[2], vx=speed[0], vy=speed[1], vz=speed[2])
    sim.N_active = len(BODIES) - 1  # Pluto and the comets feel, and are not felt
    dice = random.Random(1986)
    for _ in range(comets):
        sim.add(
            primary=sim.particles[0], a=dice.uniform(6, 12), e=dice.uniform(0.3, 0.6), inc=dice.uniform(0, 0.1),
            Omega=dice.uniform(0, math.tau), omega=dice.uniform(0, math.tau), f=dice.uniform(0, math.tau),
        )  # fmt: skip
    sim.move_to_com()
    sim.integrator = "mercurius"  # symplectic, and exact in close encounters
    sim.dt = 40.0
    return sim


def measure(sim: rebound.Simulation, start_energy: float) -> dict[str, float]:
    """Return what is logged at each step."""
    values = {"energy_error": abs((sim.energy() - start_energy) / start_energy)}
    for name, body in zip(PLANETS, sim.particles[1 : len(BODIES)], strict=True):
        values |= {f"{name}/x": body.x, f"{name}/y": body.y, f"{name}/z": body.z}
    return values


def encounters(sim: rebound.Simulation) -> set[tuple[int, str]]:
    """Return the pairs (comet, giant planet) that are close now."""
    found = set()
    for number in range(len(BODIES), sim.N):
        comet = sim.particles[number]
        for name, planet in zip(GIANTS, sim.particles[1:5], strict=True):
            distance = math.dist((comet.x, comet.y, comet.z), (planet.x, planet.y, planet.z))
            if distance < ENCOUNTER_AU:
                found.add((number - len(BODIES), name))
    return found


def spool() -> Client:
    """Return a client of the local spool, also where a server is configured: it may not have everything yet."""
    return Client(spool=load_config().spool_dir)


def last_snapshot(run_id: str, folder: Path) -> tuple[int, Path]:
    """Fetch the newest snapshot of a run from the spool; return its step and file."""
    spool().get_artifacts_as_files(run_id, path=str(folder), category="output", startswith="snapshot-")
    files = sorted(folder.glob("snapshot-*.bin"))
    if not files:
        raise SystemExit(f"run {run_id} has no snapshot to go on from: start it anew")
    return int(files[-1].stem.removeprefix("snapshot-")), files[-1]


def last_recorded_step(run_id: str) -> int:
    """Return the last step whose metrics are recorded."""
    values = spool().get_metric_values(metric_names=["energy_error"], xaxis="step", run_ids=[run_id], output_format="dict")
    return max((step for step, *_ in (values or {}).get("energy_error", {})), default=0)


def main() -> None:
    """Run the simulation, from the start or from a run's last snapshot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=float, default=1000.0, help="simulated time in all")
    parser.add_argument("--steps", type=int, default=1000, help="how often metrics are logged")
    parser.add_argument("--snapshots", type=int, default=20, help="how many snapshots are saved")
    parser.add_argument("--comets", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.0, help="take at least this long, by pausing at each step")
    parser.add_argument("--name", default="outer-solar-system")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run: its id or name")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch, Run(mode="offline") as run:
        folder = Path(scratch)
        fresh = new_simulation(options.comets)
        start_energy = fresh.energy()
        first, logged, sim = 0, 0, fresh
        if options.resume:
            run_id = spool().get_run_id_from_name(options.resume) if len(options.resume) < 22 else options.resume
            run.reconnect(run_id)
            first, snapshot = last_snapshot(run_id, folder)
            logged = last_recorded_step(run_id)
            sim = rebound.Simulation(str(snapshot))
            run.log_event(f"resumed at step {first}, year {sim.t / YEAR:.1f}; steps up to {logged} were recorded before")
        else:
            settings = {"years": options.years, "steps": options.steps, "comets": options.comets, "integrator": "mercurius"}
            run.init(options.name, metadata={**settings, "rebound": rebound.__version__}, tags=["rebound", "n-body"], folder="/examples")
        print(f"run {run.id}", flush=True)
        close = encounters(sim)
        every = max(1, options.steps // max(1, options.snapshots))
        for step in range(first + 1, options.steps + 1):
            sim.integrate(step * options.years * YEAR / options.steps, exact_finish_time=0)
            now = encounters(sim)
            if step > logged:
                run.log_metrics(measure(sim, start_energy), step=step, time=sim.t / YEAR)
                for comet, planet in sorted(now - close):
                    run.log_event(f"comet {comet} comes within {ENCOUNTER_AU:g} AU of {planet} in year {sim.t / YEAR:.1f}")
            close = now
            if step % every == 0:
                path = folder / f"snapshot-{step:08d}.bin"
                sim.save_to_file(str(path), delete_file=True)
                run.save_file(path, category="output")
                path.unlink()  # the spool has its own copy
            time.sleep(options.seconds / options.steps)
        print(f"done: {options.steps} steps, energy error {abs((sim.energy() - start_energy) / start_energy):.2e}", flush=True)


if __name__ == "__main__":
    main()
