"""How fast what was recorded offline reaches a server on the same machine, each tool's own way; a bare loop beside it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import scratch
from peer_measures import LIMIT, Bench, Cell, Failed, last_line
from peer_venvs import MODES, PROGRAMS, environment

Way = tuple[str, str, str, Callable[[Bench, Path, Path], Cell]]  # tool, what, to, and how: in a folder, with a shelf to all rounds
MODE = {mode.name: mode for mode in MODES}


def sync(bench: Bench, tools: list[str]) -> list[Cell]:
    """Measure all ways, in turns; return a line each: what, from, to, points/s, files/s, or why not."""
    ways: list[Way] = [
        ("simspool", "`agent sync`", "`agent serve`", _ours),
        ("simspool", "bare loop of full batches (Simvue's dialect, 16,000 calls each)", "`agent serve`", _bare_loop),
        ("simvue", "`simvue-sender`", "a stub that says yes at once", _simvue_to_stub),
        ("simvue", "`simvue-sender`", "`agent serve`", _simvue_to_ours),
        ("mlflow", "bare loop of full `log_batch` (1,000 metrics), `log_artifact`", "`mlflow server`, SQLite", _mlflow),
        ("simspool", "`agent sync`, a target of kind mlflow", "`mlflow server`, SQLite", _ours_to_mlflow),
    ]
    others = {_simvue_to_ours: "simspool", _ours_to_mlflow: "mlflow"}  # the tool at the other end
    chosen = [way for way in ways if {way[0], others.get(way[3], way[0])} <= set(tools)]
    with scratch(bench.plan, "peers-offline") as shelf:
        lines = _in_turns(bench, chosen, shelf)
    reasons = {
        "wandb": ("`wandb sync`", "its server needs an account or a licence: nothing to run here"),
        "trackio": ("`trackio sync`", "it sends to a hosted Space, with an account; what runs here takes no offline folder"),
    }
    return lines + [{"tool": t, "what": what, "to": "-", "not": why} for t, (what, why) in reasons.items() if t in tools]


def _in_turns(bench: Bench, chosen: list[Way], shelf: Path) -> list[Cell]:
    rounds: dict[int, list[Cell]] = {index: [] for index in range(len(chosen))}
    failed: dict[int, str] = {}
    for _ in range(bench.plan.scale(2, 1)):
        for index in bench.random.sample(range(len(chosen)), len(chosen)):
            if index in failed:
                continue
            with scratch(bench.plan, "peers") as folder:
                try:
                    rounds[index].append(chosen[index][3](bench, folder, shelf))
                except Exception as error:
                    failed[index] = str(error) or type(error).__name__
                    bench.plan.say(f"  {chosen[index][1]}: failed: {error}")
    lines: list[Cell] = []
    for index, (tool, what, to, _) in enumerate(chosen):
        cells = rounds[index]
        figures = {"failed": failed[index]} if index in failed else _medians(cells)
        lines.append({"tool": tool, "what": what, "to": to, "rounds": len(cells)} | figures)
    return lines


def _medians(cells: list[Cell]) -> Cell:
    """A rate that is None could not be told from the command's start; that is said where it is so in every round."""
    known = {key: [cell[key] for cell in cells if cell[key] is not None] for key in cells[0]}
    return {key: statistics.median(found) if found else None for key, found in known.items()}


def _rate(amount: int, whole: float, start: float) -> float | None:
    return amount / (whole - start) if whole > 1.05 * start else None


def _ours(bench: Bench, folder: Path, _shelf: Path) -> Cell:
    with _agent_serve(bench, folder / "server") as to:
        cell = _synced(bench, folder, _calls(bench, "simspool"), to)
        _check(cell["points_n"], _points_on_ours(to))
        _check(cell["files_n"], _files_on_ours(to))
    return cell


def _synced(bench: Bench, folder: Path, calls: int, to: dict[str, str], target: tuple[str, ...] = ()) -> Cell:
    """Two spools, one with points and one with files; what a sync of nothing takes is subtracted. A sync that ends with 0 left nothing."""
    agent, cell = [str(bench.environments.python("simspool")), "-m", "simspool.agent"], {}
    for kind, inside, amount in _offline(bench, "simspool", folder, calls):
        env = environment(inside, **to)
        if target:
            _timed([*agent, "target", "add", *target], env)
        whole, start = _timed([*agent, "sync"], env), _timed([*agent, "sync"], env)
        cell |= {f"{kind}_per_s": _rate(amount, whole, start), f"{kind}_s": whole, f"{kind}_n": amount, "start_s": start}
    return cell


def _simvue_to_stub(bench: Bench, folder: Path, shelf: Path) -> Cell:
    program = [str(bench.environments.python("simvue")), str(PROGRAMS / "simvue_stub.py")]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as stub:
        assert stub.stdin is not None
        assert stub.stdout is not None
        try:
            url = f"http://127.0.0.1:{int(stub.stdout.readline())}"

            def counted() -> tuple[int, int]:
                with urllib.request.urlopen(f"{url}/counted", timeout=60) as answer:
                    found = json.load(answer)
                return found["points"], found["files"]

            return _simvue(bench, folder, shelf, {"SIMVUE_URL": url}, counted)
        finally:
            stub.stdin.close()


def _simvue_to_ours(bench: Bench, folder: Path, shelf: Path) -> Cell:
    with _agent_serve(bench, folder / "server") as to:
        where = {"SIMVUE_URL": to["SIMSPOOL_URL"], "SIMVUE_TOKEN": to["SIMSPOOL_TOKEN"]}
        return _simvue(bench, folder, shelf, where, lambda: (_points_on_ours(to), _files_on_ours(to)))


def _simvue(bench: Bench, folder: Path, shelf: Path, where: dict[str, str], counted: Callable[[], tuple[int, int]]) -> Cell:
    """A copy of what was recorded in the first round: its Sender deletes what it has sent."""
    sender = Path(bench.environments.python("simvue")).with_name("simvue-sender")
    cell: Cell = {}
    for kind, recorded, amount in _offline(bench, "simvue", shelf, _calls(bench, "simvue")):
        inside = folder / kind
        shutil.copytree(recorded, inside)
        command = [str(sender), "-i", str(inside / "data")]
        first = _timed(command, environment(inside, **where))
        start = _timed(command, environment(inside, **where))
        cell |= {f"{kind}_per_s": _rate(amount, first, start), f"{kind}_s": first, f"{kind}_n": amount, "start_s": start}
    points, files = counted()
    _check(2 * _calls(bench, "simvue"), points)
    _check(cell["files_n"], files)
    return cell


def _bare_loop(bench: Bench, folder: Path, _shelf: Path) -> Cell:
    with _agent_serve(bench, folder / "server") as to:
        found = _program(bench, "simspool", folder, environment(folder, **to), "dialect", _calls(bench, "simvue"))
        _check(found["points"], _points_on_ours(to))
    return {"points_per_s": found["points"] / found["seconds"], "points_s": found["seconds"], "points_n": found["points"]}


def _mlflow(bench: Bench, folder: Path, _shelf: Path) -> Cell:
    calls, count = _calls(bench, "mlflow"), _files(bench)
    source = _source_files(folder, count)
    with _mlflow_server(bench, folder) as env:
        points = _program(bench, "mlflow", folder, env, "mlflow", calls)
        files = _program(bench, "mlflow", folder, env, "mlflow-files", source)
        _check_mlflow(bench, folder, env, 2 * calls, count)
    return {
        "points_per_s": points["points"] / points["seconds"], "points_s": points["seconds"], "points_n": points["points"],
        "files_per_s": count / files["seconds"], "files_s": files["seconds"], "files_n": count,
    }  # fmt: skip


def _ours_to_mlflow(bench: Bench, folder: Path, _shelf: Path) -> Cell:
    with _mlflow_server(bench, folder) as env:
        target = ("beside", "mlflow", env["MLFLOW_TRACKING_URI"], "--experiment", "peers")
        cell = _synced(bench, folder, _calls(bench, "mlflow"), {"SIMVUE_URL": "", "SIMVUE_TOKEN": ""}, target)
        _check_mlflow(bench, folder, env, cell["points_n"], cell["files_n"])
    return cell


def _check_mlflow(bench: Bench, folder: Path, env: dict[str, str], points: int, files: int) -> None:
    counted = _program(bench, "mlflow", folder, env, "mlflow-counted", 0)
    _check(points, counted["points"])
    _check(files, counted["files"])


@contextlib.contextmanager
def _mlflow_server(bench: Bench, folder: Path) -> Iterator[dict[str, str]]:
    """MLflow's server on an SQLite file; gives the environment that leads to it."""
    port, env = _free_port(), environment(folder)
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "artifacts")]
    how = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--serve-artifacts"]
    command = [str(bench.environments.python("mlflow")), "-m", "mlflow", "server", *how, *store]
    with _server(command, env, folder, f"http://127.0.0.1:{port}/health"):
        yield env | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}


def _program(bench: Bench, tool: str, folder: Path, env: dict[str, str], *arguments: object) -> Cell:
    return last_line([str(bench.environments.python(tool)), str(PROGRAMS / "full_batches.py"), *map(str, arguments)], folder, env)


def _calls(bench: Bench, tool: str) -> int:
    sizes = {"simspool": (500_000, 50_000), "simvue": (100_000, 20_000), "mlflow": (10_000, 1_000)}
    return bench.plan.scale(*sizes[tool])


def _files(bench: Bench) -> int:
    return bench.plan.scale(100, 10)


def _source_files(folder: Path, count: int) -> Path:
    source = folder / "source"
    source.mkdir()
    for number in range(count):
        (source / f"file{number:03d}.bin").write_bytes(os.urandom(1 << 20))
    return source


def _offline(bench: Bench, tool: str, folder: Path, most: int) -> Iterator[tuple[str, Path, int]]:
    """Record a run of points, and one of files, where they are not yet; give each, its folder, and how many."""
    for kind, calls, files in (("points", most, 0), ("files", 0, _files(bench))):
        inside = folder / kind
        if not inside.exists():
            environment(inside)
            source = (_source_files(inside, files),) if files else ()
            bench.measure(MODE[tool], inside, "record", calls, *source)
        yield kind, inside, 2 * calls or files


def _timed(command: list[str], env: dict[str, str]) -> float:
    """Run a command to its end; return how long it took."""
    a = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=env["PEERS_DATA"], env=env, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"{Path(command[0]).name} was not done after {LIMIT} s") from None
    if done.returncode:
        raise Failed(f"{Path(command[0]).name} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-200:]}")
    return time.perf_counter() - a


def _check(expected: int, counted: int) -> None:
    if expected != counted:
        raise Failed(f"the server counts {counted:,} where {expected:,} were sent")


@contextlib.contextmanager
def _agent_serve(bench: Bench, folder: Path) -> Iterator[dict[str, str]]:
    """Our server; gives the environment that leads to it."""
    port, env = _free_port(), environment(folder)
    data = folder / "data"
    command = [str(bench.environments.python("simspool")), "-m", "simspool.agent", "serve", "--data", str(data), "--port", str(port)]
    with _server(command, env, folder, f"http://127.0.0.1:{port}/api/version"):
        yield {"SIMSPOOL_URL": f"http://127.0.0.1:{port}", "SIMSPOOL_TOKEN": (data / "token").read_text().strip()}


@contextlib.contextmanager
def _server(command: list[str], env: dict[str, str], folder: Path, ready: str) -> Iterator[None]:
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(ready, timeout=2):
                break
            if process.poll() is not None or time.monotonic() > end:
                raise Failed(f"the server did not start: {log.read_text(errors='replace').strip()[-300:]}")
            time.sleep(0.1)
        yield
    finally:
        for number in (15, 9):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _get(to: dict[str, str], path: str) -> Any:
    request = urllib.request.Request(to["SIMSPOOL_URL"] + path, headers={"Authorization": f"Bearer {to['SIMSPOOL_TOKEN']}"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def _files_on_ours(to: dict[str, str]) -> int:
    return int(_get(to, "/api/artifacts?start=0&count=1")["count"])


def _points_on_ours(to: dict[str, str]) -> int:
    """Count the points of the two metrics on our server; resource samples of others do not count."""
    runs = _get(to, "/api/runs?start=0&count=100&return_metrics=true")["data"]
    return sum(run["metrics"].get(name, {}).get("count", 0) for run in runs for name in ("loss", "accuracy"))
