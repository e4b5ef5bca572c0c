"""The results of campaigns as lines, JSON and a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trials import Part

CAMPAIGN, DEFECTS = "campaign", "defects"
_EMPTY = "# Faults\n"


def as_dict(part: Part) -> dict[str, Any]:
    """Return a part as JSON."""
    return {
        "fault": part.fault, "name": part.name, "n": part.n, "violations": part.violations, "figures": part.figures,
        "skipped": part.skipped, "seconds": round(part.seconds, 1), "seed": part.seed,
    }  # fmt: skip


def bound(n: int, violations: int) -> str:
    """Return the 95 % bound of the rate, where nothing was violated."""
    return f"< {3 / n:.2g}" if n and not violations else "-"


def line(part: Part) -> str:
    """Return a part's result as a line."""
    if part.skipped:
        return f"skipped: {part.skipped}"
    violations = len(part.violations)
    tried = f"n = {part.n}, {violations} violations (95 %: {bound(part.n, violations)})"
    return f"{tried}, {part.seconds:.0f} s, seed {part.seed}{_figures(part.figures)}"


def _figures(figures: dict[str, Any]) -> str:
    return "".join(f", {name.replace('_', ' ')} {value:,}" for name, value in figures.items())


def write_page(path: Path, found: dict[str, Any]) -> None:
    """Put the campaign's table into the page."""
    _put(path, CAMPAIGN, _table(found))


def write_defects(path: Path, found: Sequence[dict[str, Any]]) -> None:
    """Put the table of seeded defects into the page."""
    caught = sum(f["caught"] for f in found)
    lines = [f"{caught} of {len(found)} seeded defects caught.", "", "| defect | caught by |", "| --- | --- |"]
    lines += [f"| {f['defect']} | {_catcher(f['catcher']) if f['caught'] else '**not caught**'} |" for f in found]
    _put(path, DEFECTS, lines)


def _catcher(words: str) -> str:
    return f"`campaign.py --only {words.removeprefix('campaign ')}`" if words.startswith("campaign ") else f"`{words}`"


def _put(path: Path, mark: str, lines: Sequence[str]) -> None:
    """Replace what lies between two marks of a page; what is written around them stays. A mark that is not there is added at the end."""
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    text = path.read_text() if path.exists() else _EMPTY
    before, found, rest = text.partition(begin)
    after = rest.partition(end)[2] if found else "\n"
    path.write_text(f"{before if found else text + chr(10)}{begin}\n" + "\n".join(lines) + f"\n{end}{after}")


def _table(found: dict[str, Any]) -> list[str]:
    about, parts = found["about"], found["parts"]
    played = [p for p in parts if not p["skipped"]]
    total, violations = sum(p["n"] for p in played), sum(len(p["violations"]) for p in played)
    where = f"{about['date']}, scale {about['scale']}, seed {about['seed']}, {about['machine']}, {about['seconds'] / 60:.0f} min"
    lines = [
        f"{total:,} trials, {violations} violations of I1 to I9 ({where}).", "",
        "| fault | how | n | violations | 95 % bound | s | figures |", "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    lines += [
        f"| {p['fault']} | {p['name']} | {p['n']:,} | {len(p['violations'])} | {bound(p['n'], len(p['violations']))} | {p['seconds']:.0f} |"
        f" {_figures(p['figures'])[2:]} |"
        for p in played
    ]
    lines += [f"| {p['fault']} | {p['name']} | - | - | - | - | not played: {p['skipped']} |" for p in parts if p["skipped"]]
    lines += [f"| {fault} | - | - | - | - | - | {why} |" for fault, why in found.get("not_played", {}).items()]
    for p in played:
        lines += [f"\nViolated by {p['fault']}, {p['name']}: {json.dumps(text)}" for text in p["violations"][:3]]
    return lines
