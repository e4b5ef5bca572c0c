"""Aborts: a solver that diverges is stopped in time by a real agent; who asks, and what is left in the record."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from executing import Place, until
from on_demand import ended_after
from real_server import agent

HEAT = r"""
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
/* The heat equation on a rod, explicitly: unstable where r > 1/2. */
int main(int argc, char **argv) {
    enum { N = 101 };
    double u[N], v[N], r = atof(argv[1]);
    struct timespec nap = {0, 2000000};
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 0; i < N; i++) u[i] = sin(3.14159265358979 * i / (N - 1)) + 0.01 * (i % 2);
    for (int step = 1; step <= atoi(argv[2]); step++) {
        double norm = 0;
        for (int i = 1; i < N - 1; i++) v[i] = u[i] + r * (u[i + 1] - 2 * u[i] + u[i - 1]);
        for (int i = 1; i < N - 1; i++) { u[i] = v[i]; norm += u[i] * u[i]; }
        printf("step %d norm = %.6e\n", step, sqrt(norm));
        nanosleep(&nap, NULL);
    }
    FILE *out = fopen("rod.dat", "w");
    for (int i = 0; i < N; i++) fprintf(out, "%g\n", u[i]);
    fclose(out);
    return 0;
}
"""


@pytest.fixture
def served(place: Place, tmp_path: Path) -> Iterator[Place]:
    """An agent that watches the spool, started by the first command as for scripts."""
    with ended_after(tmp_path):
        yield place


def test_a_solver_that_diverges_is_stopped_in_time(served: Place, built: Callable[[str, str], Path]) -> None:
    solver = str(built("heat", HEAT))
    options = ("--agent", "auto", "--metric", r"step (?P<step>\d+) norm = (?P<norm>\S+)", "--output", "*.dat")
    limit = ("--abort-when", "norm is above 1e6")
    done = served.run(*options, "--name", "bad", *limit, "--", solver, "0.7", "100000", code=None)
    assert done.returncode == -signal.SIGTERM, done.stderr
    bad = served.ended("bad")
    assert bad["status"] == "terminated", (bad, done.stderr)
    assert "norm is above 1e6" in bad["reason"], (bad, done.stderr)
    steps = served.metrics("bad")
    assert [step for step, _ in steps] == list(range(1, len(steps) + 1))
    assert max(float(values["norm"]) for _, values in steps) > 1e6
    assert len(steps) < 50_000
    assert served.artifact("stdout", bad["id"]).count(b"\n") == len(steps)
    assert [b["state"] for b in served.bodies("abort", "bad") if b["state"] in {"received", "done"}] == ["received", "done"]
    assert served.bodies("process-exit", "bad")[0]["signal"] == signal.SIGTERM
    served.run(*options, "--name", "good", *limit, "--", solver, "0.4", "300")
    assert served.ended("good")["status"] == "completed"
    assert served.artifact("rod.dat", served.show("good")["id"]).count(b"\n") == 101


def test_an_abort_by_hand_lets_a_command_end_as_it_likes(place: Place) -> None:
    tidy = "trap 'echo checkpoint > state; echo saved; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    process = place.start("--name", "tidy", "--output", "state", "--", "sh", "-c", tidy)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    asked = agent("abort", "tidy", "--reason", "enough", "--wait", check=True)
    assert process.wait(40) == 3
    assert process.stdout.read() == b"saved\n"
    shown = place.show("tidy")
    assert (shown["status"], shown["reason"]) == ("terminated", "enough")
    assert place.artifact("state", shown["id"]) == b"checkpoint\n"
    assert place.artifact("stdout", shown["id"]) == b"ready\nsaved\n"
    assert place.bodies("process-exit", "tidy")[0]["code"] == 3
    assert str(process.pid) in asked.stdout


def test_a_tree_that_does_not_want_to_end_is_killed(place: Place) -> None:
    (place.cwd / "simspool.toml").write_text("[abort]\nterm_grace = 0.5\n")
    stubborn = "trap '' TERM; sh -c 'echo $$; exec sleep 1000' & sleep 1000"
    process = place.start("--name", "stubborn", "--", "sh", "-c", stubborn)
    assert process.stdout is not None
    inner = int(process.stdout.readline())
    agent("abort", "stubborn", check=True)
    assert process.wait(40) == -signal.SIGKILL
    until(lambda: not Path(f"/proc/{inner}").exists() or " Z " in Path(f"/proc/{inner}/stat").read_text(), "the end of the tree")
    assert place.show("stubborn")["status"] == "terminated"


def test_a_reader_that_stands_still_does_not_keep_an_aborted_command(place: Place) -> None:
    read, write = os.pipe()
    process = place.start("--name", "blocked", "--", "yes", stdout=write)
    os.close(write)
    try:
        until(lambda: (place.spool / "runs").exists() and agent("abort", "blocked").returncode == 0, "the run")
        assert process.wait(50) == -signal.SIGTERM
    finally:
        os.close(read)
    assert place.show("blocked")["status"] == "terminated"


def test_without_an_agent_it_is_said_that_nobody_judges(place: Place) -> None:
    done = place.run("--abort-when", "x is not finite", "--", "true")
    assert b"alerts are judged by an agent, and none runs for this spool" in done.stderr
