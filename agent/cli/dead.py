"""`agent dead` and `agent retry`: what targets refused, and what the user decides of it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import click

from simspool.agent.catalog import Catalog
from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.agent.status import find_run
from simspool.agent.truth.dead import FILE, Decision, Letter, is_retried_elsewhere, letters
from simspool.agent.truth.known import KnownTarget
from simspool.spool import Locked, Spool, blobs

from . import output
from .handover import agent_decides, api_path
from .settings import Settings, common
from .status import targets_of
from .view import open_view, opened_to_write

_AT_ONCE, _PATIENCE = 50_000, 30.0
_target = click.option("--target", "names", multiple=True, metavar="NAME", help="Only what this target refused (again: and this one).")


@click.group(short_help="Show what targets refused for good, and give up on it.")
def dead() -> None:
    """Show what targets refused for good, with the reasons; export it; give up on it. `agent retry` tries it again.

    An ID is a writer's (all the rest of it was refused), WRITER.SEQUENCE (one record), or file:KEY, as `agent dead ls` shows them.
    """


@dead.command(help="List what was refused, with the reasons.")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@_target
@click.option("--dropped", is_flag=True, help="Show also what was given up.")
@common
def ls(settings: Settings, runs: tuple[str, ...], names: tuple[str, ...], dropped: bool) -> int:
    """RUN is an id, a unique beginning of one, or a name; without any, all runs are meant."""
    found = [letter for letter in _letters(settings, settings.open_spool(), runs, names) if dropped or not letter.given_up]
    if settings.json:
        for letter in found:
            output.echo_json(letter.as_dict())
        return ExitCode.OK
    rows = [
        (letter.target, letter.id, letter.run, _about(letter), letter.reason + (" (given up)" if letter.given_up else ""))
        for letter in found
    ]
    for line in output.table(["target", "id", "run", "what", "reason"], rows):
        output.echo(line)
    return ExitCode.OK


def _about(letter: Letter) -> str:
    if letter.sort == "file":
        return f"file {letter.name}"
    if letter.sort == "record":
        return f"record {letter.first}" + (", to be sent again" if letter.again else "")
    return f"{letter.last - letter.first + 1} records, {letter.first} to {letter.last}"


@dead.command(help="Print the refused records themselves, decoded.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All that is refused and not given up.")
@_target
@common
def show(settings: Settings, ids: tuple[str, ...], everything: bool, names: tuple[str, ...]) -> int:
    """One line a record, with `--json` a line of JSON: to keep, or to send in another way."""
    spool = settings.open_spool()
    for letter in _chosen(settings, spool, ids, everything, (), names, "retry"):
        for body in _decoded(spool, letter):
            if settings.json:
                output.echo_json({"target": letter.target, "id": letter.id, "run": letter.run, "reason": letter.reason, **body})
            else:
                output.echo(output.safe(f"{letter.target}  {letter.id}  {letter.reason}  {output.json_line(body)}"))
    return ExitCode.OK


def _decoded(spool: Spool, letter: Letter) -> Iterator[dict[str, Any]]:
    from .cat import lines_of

    folder = spool.run(letter.run)
    if letter.sort == "file":
        digest = letter.id.removeprefix(FILE)
        yield {"file": letter.name, "path": blobs.path_of(spool, folder, digest) if "." not in digest else None}
        return
    count = 0
    for _, line in lines_of(folder, letter.writer, False, []):
        if letter.first <= line.get("seq", 0) <= letter.last:
            count += 1
            yield {"record": line}
    if not count:
        yield {"record": None, "gone": "it is not in the spool any more"}


@dead.command(help="Give up on what was refused: it no longer fails a sync, nor keeps a run in the spool.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All that is refused.")
@click.option("--run", "runs", multiple=True, metavar="RUN", help="All that is refused of this run (again: and of this one).")
@_target
@common
def drop(settings: Settings, ids: tuple[str, ...], everything: bool, runs: tuple[str, ...], names: tuple[str, ...]) -> int:
    """The decision is journaled and counted; nothing is deleted by it. `agent retry` takes it back."""
    spool = settings.open_spool()
    count = _decide(settings, spool, "drop", _chosen(settings, spool, ids, everything, runs, names, "drop"))
    _say(settings, f"gave up on {count} refusals", count)
    return ExitCode.OK


@click.command(short_help="Try again what targets refused.")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--all", "everything", is_flag=True, help="Of all runs.")
@click.option("--id", "ids", multiple=True, metavar="ID", help="Only this one of `agent dead ls` (again: and this one).")
@_target
@common
def retry(settings: Settings, runs: tuple[str, ...], everything: bool, ids: tuple[str, ...], names: tuple[str, ...]) -> int:
    """Try again what targets refused of RUN, of all runs, or by ID: at the next sync, or by the running agent at once.

    RUN is an id, a unique beginning of one, or a name.
    """
    spool = settings.open_spool()
    chosen = _chosen(settings, spool, ids, everything, runs, names, "retry")
    here = [letter for letter in chosen if not is_retried_elsewhere(letter.server)]
    if len(here) < len(chosen):
        why = "what the far side of bundles refused is tried again there: `agent retry` in the spool that imports, then bring its receipt"
        if not here:
            raise CommandError(ExitCode.USAGE, why)
        output.note(f"agent: {len(chosen) - len(here)} refusals are left as they are: {why}")
    count = _decide(settings, spool, "retry", here)
    _say(settings, f"{count} refusals are tried again" + ("" if api_path(spool) else ": `agent sync` sends them"), count)
    return ExitCode.OK


def _say(settings: Settings, text: str, count: int) -> None:
    if settings.json:
        output.echo_json({"count": count})
    else:
        output.echo(text)


def _letters(settings: Settings, spool: Spool, runs: Sequence[str], names: Collection[str]) -> list[Letter]:
    with open_view(spool) as catalog:
        wanted = {find_run(catalog, spool, text) for text in runs} if runs else None
        return letters(catalog, _targets(settings, spool, catalog, names), wanted)


def _targets(settings: Settings, spool: Spool, catalog: Catalog, names: Collection[str]) -> list[KnownTarget]:
    found = targets_of(settings, spool, catalog)
    for name in names:
        if name not in {t.name for t in found}:
            known = ", ".join(t.name for t in found) or "none"
            raise CommandError(ExitCode.USAGE, f"there is no target {name!r}: there are {known}")
    return [t for t in found if not names or t.name in names]


def _chosen(
    settings: Settings, spool: Spool, ids: Sequence[str], everything: bool, runs: Sequence[str], names: Collection[str], decision: Decision
) -> list[Letter]:
    """Return the letters that the command line means. Raises CommandError for an id that is none."""
    if not ids and not everything and not runs:
        raise click.UsageError("say what is meant: IDs of `agent dead ls`, runs, or --all")
    found = _letters(settings, spool, runs, names)
    if ids:
        for one in set(ids) - {letter.id for letter in found}:
            raise CommandError(ExitCode.USAGE, f"nothing that was refused has the id {one!r}: `agent dead ls --dropped` lists all")
        return [letter for letter in found if letter.id in ids]
    return [letter for letter in found if not letter.given_up or (decision == "retry" and not everything)]


def _decide(settings: Settings, spool: Spool, decision: Decision, chosen: Sequence[Letter]) -> int:
    """Let the running agent do it, or do it here; where another command has the spool, wait for it."""
    from simspool.agent.truth.dead import decide

    count = 0
    for i in range(0, len(chosen), _AT_ONCE):
        by_server: dict[str, set[str]] = {}
        for letter in chosen[i : i + _AT_ONCE]:
            by_server.setdefault(letter.server, set()).add(letter.id)
        deadline = time.monotonic() + _PATIENCE
        while True:
            path = api_path(spool)
            done = agent_decides(path, decision, by_server) if path else None
            if done is not None:
                count += done
                break
            try:
                with opened_to_write(spool) as (catalog, journal):
                    count += decide(catalog, journal, decision, list(by_server.items()))
                break
            except Locked:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
    return count
