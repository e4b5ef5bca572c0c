"""The page: a table of figures, one of ratios, what each loses, where others are better."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer_venvs import MODES

Cell = dict[str, Any]
_KILLS = {
    "flat_tree": "flat out, all of its processes",
    "flat_process": "flat out, the script's process",
    "paced_tree": "200 calls/s, all of its processes",
    "paced_process": "200 calls/s, the script's process",
}
_SYNCED = {"simvue", "mlflow-sqlite"}  # the columns in which a tool's own way to a server is compared


@dataclass(frozen=True)
class Row:
    """A figure: where it is found, how it is written, and, for the ratios, whether less is better."""

    title: str
    measure: str
    key: str
    form: str = ""  # three digits, and thousands whole
    scale: float = 1.0
    less: bool = True
    compared: bool = True


ROWS = [
    Row("import, s", "imports", "seconds"),
    Row("import, MB of memory", "imports", "memory", "{:,.0f}", 1e-6),
    Row("a call, median, µs", "calls", "median_us"),
    Row("a call, p99, µs", "calls", "p99_us"),
    Row("a call, median, times json.dumps + os.write", "calls", "ratio", compared=False),
    Row("calls/s, flat out, close included", "calls", "per_s", "{:,.0f}", less=False),
    Row("close after that, s", "calls", "close_s", compared=False),
    Row("memory at the end, MB", "calls", "rss", "{:,.0f}", 1e-6),
    Row("bytes on disk a call, length", "calls", "apparent_bytes", "{:,.0f}"),
    Row("bytes on disk a call, allocated", "calls", "allocated_bytes", "{:,.0f}"),
    Row("calls timed", "calls", "timed", "{:,.0f}", compared=False),
    Row("a file saved, s", "files", "first"),
    Row("the same file under a second name, s", "files", "second"),
    Row("stored after the first, MB", "files", "stored_1", "{:,.0f}", compared=False),
    Row("stored after the second, MB", "files", "stored_2", "{:,.0f}", compared=False),
]


def page(found: dict[str, Any]) -> str:
    """Return the page in Markdown."""
    run, cells = found["run"], found["cells"]
    shown = [mode for mode in MODES if mode.tool in run["tools"]]
    columns = [mode for mode in shown if any(mode.name in kinds for name, kinds in cells.items() if name != "kills")]
    compared = [mode for mode in shown if mode.tool != "simspool" and (mode in columns or (found["sync"] and mode.name in _SYNCED))]
    parts = [_head(run), _figures(cells, columns), _notes(cells), _kills(cells, shown, run["kill_after"]), _sync(found["sync"])]
    if compared and "simspool" in run["tools"]:
        parts += [_ratios(found, compared), _better(found, compared)]
    return "\n".join(part for part in parts if part)


def _head(run: Cell) -> str:
    quick = " `--quick` (a smoke test, not a result)" if run["quick"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if name in run["tools"])
    load = ", load average {:.1f} at the start and {:.1f} at the end".format(*run["load"])
    return f"""# Peers

Made by `python benchmarks/peers.py`{quick}: the same scripts for every tool, each in an environment of its own, in rounds that take turns.
Absolute numbers move with the machine and its load; the ratios move less.

{run["date"]}, {run["minutes"]:.0f} minutes, seed {run["seed"]}{load}:

- {_machine()}
- simspool of this checkout{"; " + versions if versions else ""}
- every tool in the mode that it documents for work without a network, its telemetry and its resource samples switched off; nothing was
  reached but this machine. simspool without an agent beside it: the SDK alone records.
"""


def _machine() -> str:
    def lines(path: str) -> list[str]:
        try:
            return Path(path).read_text().splitlines()
        except OSError:
            return []

    model = next((line.split(":", 1)[1].strip() for line in lines("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    memory = next((int(line.split()[1]) for line in lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model}, {memory / 1e6:.0f} GB memory, Linux {platform.release()}, CPython {platform.python_version()}"


def _table(title: str, columns: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {title} | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _figures(cells: dict[str, dict[str, Cell]], columns: list[Any]) -> str:
    rows = [[row.title, *(_value(cells[row.measure].get(mode.name), row) for mode in columns)] for row in ROWS if row.measure in cells]
    if not rows:
        return ""
    return "## Figures\n\n" + _table("", [mode.label for mode in columns], rows)


def _value(cell: Cell | None, row: Row) -> str:
    if cell is None:
        return ""
    if "failed" in cell:
        return f"failed: {_escaped(cell['failed'])}"
    value = cell[row.key] * row.scale
    return row.form.format(value) if row.form else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _notes(cells: dict[str, dict[str, Cell]]) -> str:
    notes = []
    if rounds := _rounds(cells, "imports"):
        notes.append(f"Import: the one statement that a user writes, over a Python that has started; medians of {rounds} processes.")
    if rounds := _rounds(cells, "calls"):
        notes.append(
            "A call: two metrics and a step; each timed alone, with the clock's own time subtracted, in turns of 200 with `json.dumps` and"
            " `os.write` of the same in the same process. p99 includes what a tool's threads take from the script. Medians of"
            f" {rounds} rounds; a round ends early where a tool is slow (see calls timed). Bytes: what is there after the close, above what"
            " a run of one call leaves. Most return when the call is in memory or in the page cache; MLflow's SQLite without"
            ' `synchronous=False` commits it to the disk, which is what simspool does with `durability="each"`.'
        )
    if rounds := _rounds(cells, "files"):
        size = next(cell["size"] for cell in cells["files"].values() if "size" in cell)
        notes.append(
            f"A file: {size:.0f} MB of random bytes, medians of {rounds} rounds. simvue by default keeps the path only: a file that is"
            " changed or deleted before the upload is gone; with `snapshot=True` it copies."
        )
    return "\n".join(f"- {note}" for note in notes) + "\n" if notes else ""


def _rounds(cells: dict[str, dict[str, Cell]], measure: str) -> int:
    return next((cell["rounds"] for cell in cells.get(measure, {}).values() if "rounds" in cell), 0)


def _kills(cells: dict[str, dict[str, Cell]], modes: list[Any], after: list[float]) -> str:
    if "kills" not in cells:
        return ""
    found, rows = cells["kills"], []
    for name, title in _KILLS.items():
        rows.append([title, *(_lost(found[mode.name].get(name) or found[mode.name]) for mode in modes if mode.name in found)])
    n = max(cell.get("kills", 0) for kinds in found.values() for cell in kinds.values() if isinstance(cell, dict))
    return (
        "## Lost to SIGKILL\n\nCalls that had returned, minus those that the tool's own reader finds afterwards; lost / acknowledged, the"
        f" sum of {n} kills a cell, each {after[0]} to {after[1]} s after the first call. In the first and third row all that the tool has"
        " started is killed with it, in the others only the script, and its helpers have up to 8 s to write what they have."
        " Readers: ours, MLflow's client, trackio's own query; simvue's files are read as its Sender reads them, and wandb's, which has no"
        " reader in Python, block by block with its own message classes.\n\n"
        + _table("killed", [mode.label for mode in modes if mode.name in found], rows)
    )


def _lost(cell: Cell) -> str:
    if not cell.get("kills"):
        return f"failed: {_escaped(cell.get('failed', 'nothing was measured'))}"
    lost = cell["acknowledged"] - cell["found"]
    text = f"{lost:,} / {cell['acknowledged']:,}"
    if lost:
        share = 100 * lost / cell["acknowledged"]
        text += " (all)" if cell["found"] == 0 else f" ({share:.0f} %)" if share >= 1 else f" ({share:.1g} %)"
    if cell["repeated"]:
        text += f", {cell['repeated']:,} twice"
    if "failed" in cell:
        text += f"; of {cell['kills']} kills: {_escaped(cell['failed'])}"
    return text


def _sync(lines: list[Cell]) -> str:
    if not lines:
        return ""
    rows = []
    for line in lines:
        why = line.get("failed") or line.get("not")
        figures = [f"{'failed' if 'failed' in line else 'not measured'}: {_escaped(why)}", "", "", ""] if why else [
            *(_pace(line, kind) for kind in ("points", "files")),
            f"{line['start_s']:.1f}" if "start_s" in line else "-",
            str(line["rounds"]),
        ]  # fmt: skip
        rows.append([f"{line['tool']}: {line['what']}", line["to"], *figures])
    return (
        "## Sync\n\nFrom the offline folder to a server on the same machine: points, and files of 1 MiB, each in a folder of its own,"
        " counted on the server afterwards. What the command takes with nothing to send is subtracted, and shown as its start; bare loops"
        " time the loop.\n\n" + _table("", ["to", "points/s (n)", "files/s (n)", "start, s", "rounds"], rows)
    )


def _pace(line: Cell, kind: str) -> str:
    if f"{kind}_n" not in line:
        return "-"
    rate = line[f"{kind}_per_s"]
    return f"{'too short to tell' if rate is None else format(rate, ',.0f')} ({line[f'{kind}_n']:,.0f})"


def _ratios(found: dict[str, Any], columns: list[Any]) -> str:
    cells, rows = found["cells"], []
    for row in _compared(cells):
        quotients = (_ratio(cells[row.measure], mode.name, row) for mode in columns)
        rows.append([f"{row.title} ({'less' if row.less else 'more'} is better)", *quotients])
    for key, title in (("points_per_s", "points/s to a server"), ("files_per_s", "files/s to a server")):
        if any(key in line for line in found["sync"]):
            rows.append([f"{title} (more is better)", *(_sync_ratio(found["sync"], mode, key) for mode in columns)])
    if not rows:
        return ""
    return (
        "## Ratios\n\nsimspool / the other; **bold** where the other is better. Servers as in the table above: simvue's is the stub,"
        " MLflow's its own, fed by the bare loop.\n\n" + _table("", [mode.label for mode in columns], rows)
    )


def _compared(cells: dict[str, Any]) -> list[Row]:
    return [row for row in ROWS if row.compared and row.measure in cells]


def _quotient(ours: Cell | None, theirs: Cell | None, key: str) -> float | None:
    if not ours or not theirs or key not in ours or key not in theirs or not ours[key] or not theirs[key] or theirs[key] < 0:
        return None
    return float(ours[key] / theirs[key])


def _worse(quotient: float, less: bool) -> bool:
    return quotient > 1 if less else quotient < 1


def _ratio(cells: dict[str, Cell], name: str, row: Row) -> str:
    quotient = _quotient(cells.get("simspool"), cells.get(name), row.key)
    return "" if quotient is None else _shown(quotient, row.less)


def _shown(quotient: float, less: bool) -> str:
    text = f"{quotient:,.0f}" if quotient >= 100 else f"{quotient:.2g}"
    return f"**{text}**" if _worse(quotient, less) else text


def _sync_ratio(lines: list[Cell], mode: Any, key: str) -> str:
    if mode.name not in _SYNCED:
        return ""
    ours, theirs = (next((line for line in lines if line["tool"] == tool), None) for tool in ("simspool", mode.tool))
    quotient = _quotient(ours, theirs, key)
    return "" if quotient is None else _shown(quotient, less=False)


def _better(found: dict[str, Any], columns: list[Any]) -> str:
    cells, lines = found["cells"], []
    for row in _compared(cells):
        for mode in columns:
            quotient = _quotient(cells[row.measure].get("simspool"), cells[row.measure].get(mode.name), row.key)
            if quotient is not None and _worse(quotient, row.less):
                ours, theirs = (_value(cells[row.measure][name], row) for name in ("simspool", mode.name))
                lines.append(f"- {row.title}: {mode.label} {theirs}, simspool {ours}")
    for key in ("points_per_s", "files_per_s"):
        worse = (mode for mode in columns if _sync_ratio(found["sync"], mode, key).startswith("**"))
        lines += [f"- {key.split('_')[0]}/s to a server: {mode.label}" for mode in worse]
    for name, title in _KILLS.items():
        ours = cells.get("kills", {}).get("simspool", {}).get(name)
        if ours and ours["acknowledged"] > ours["found"]:
            lines.append(f"- simspool lost acknowledged calls, {title}: {_lost(ours)}")
    if not lines:
        return ""
    return "## Where another is better\n\n" + "\n".join(lines) + "\n"
