"""`agent verify`: recount runs on the targets, and compare with what was recorded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.agent.status import find_run

from . import output
from .settings import Settings, common
from .view import open_view

if TYPE_CHECKING:
    from simspool.agent.truth.compare import Outcome
    from simspool.agent.truth.verify import Verifier

_WORDS = {"unknown": "unknown there", "nothing": "nothing acknowledged yet"}


@click.command(short_help="Recount runs on the targets, and compare with what was recorded.")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--all", "everything", is_flag=True, help="All runs of the spool, pruned ones too.")
@click.option("--target", "names", multiple=True, metavar="NAME", help="Only this target (again: and this one).")
@click.option("--deep", is_flag=True, help="Have the target read every point and hash every file, where it can.")
@common
def verify(settings: Settings, runs: tuple[str, ...], everything: bool, names: tuple[str, ...], deep: bool) -> int:
    """Recount RUNs, or all runs, on the targets, and compare with what was recorded: points of each metric, the first and the last of
    them, events, files by their digests, the status.

    What was recorded is read again from the spool's segments. Exit status 0 when everything that a target acknowledged is there, 11 when
    something differs, 3 when a target does not answer. RUN is an id, a unique beginning of one, or a name.
    """
    if not runs and not everything:
        raise click.UsageError("give RUNs, or --all")
    return asyncio.run(_verify(settings, runs, names, deep))


async def _verify(settings: Settings, runs: tuple[str, ...], names: tuple[str, ...], deep: bool) -> int:
    from simspool.agent.targets.build import make_target
    from simspool.agent.targets.port import Refused, Unreachable
    from simspool.agent.targets.settings import BUNDLE
    from simspool.agent.truth.known import known_targets
    from simspool.agent.truth.verify import Asked, Verifier, connect

    spool = settings.open_spool()
    chosen = settings.targets_now(spool)
    for name in names:
        if name not in {s.name for s in chosen}:
            raise CommandError(ExitCode.USAGE, f"there is no target {name!r}: there are {', '.join(s.name for s in chosen) or 'none'}")
    chosen = [s for s in chosen if not names or s.name in names]
    if not chosen:
        raise CommandError(ExitCode.NO_TARGET, "no target is configured: set SIMSPOOL_URL, or `agent target add`")
    worst = ExitCode.OK
    totals: dict[str, int] = {}
    with open_view(spool) as catalog:
        ids = [find_run(catalog, spool, text) for text in runs] or [r for (r,) in catalog.rows("SELECT id FROM runs ORDER BY id")]
        ids = list(dict.fromkeys(ids))
        known = {t.name: t for t in known_targets(catalog, chosen)}
        with output.Progress("verifying", len(ids) * len(chosen), quiet=settings.json) as bar:
            for one in chosen:
                if one.kind == BUNDLE:
                    _carried(settings, one.name)
                    bar.advance(len(ids))
                    continue
                try:
                    target = make_target(one)
                except Refused as error:
                    worst = max(worst, _failed(settings, one.name, str(error), ExitCode.REFUSED))
                    continue
                try:
                    asked: Asked = await connect(catalog, known[one.name], target)
                    if asked.problem:
                        code = ExitCode.REFUSED if asked.refused else ExitCode.UNREACHABLE
                        worst = max(worst, _failed(settings, one.name, asked.problem, code))
                        continue
                    verifier = Verifier(spool, catalog, asked, deep=deep, report=lambda _: None)
                    async for outcome in verifier.all(ids):
                        bar.advance(note=f"{one.name}: {outcome.run}")
                        totals[outcome.verdict] = totals.get(outcome.verdict, 0) + 1
                        if outcome.verdict in {"differs", "unknown"}:
                            worst = max(worst, ExitCode.DIFFERENT)
                        _show(settings, bar, outcome, verifier, deep=deep)
                except (Unreachable, Refused) as error:
                    code = ExitCode.REFUSED if isinstance(error, Refused) else ExitCode.UNREACHABLE
                    worst = max(worst, _failed(settings, one.name, str(error), code))
                finally:
                    await target.close()
    if not settings.json:
        said = ", ".join(f"{n} {_WORDS.get(verdict, verdict)}" for verdict, n in sorted(totals.items())) or "nothing was verified"
        output.echo(f"{len(ids)} runs on {sum(s.kind != BUNDLE for s in chosen)} targets: {said}")
    return worst


def _carried(settings: Settings, name: str) -> None:
    """Say of a target to which bundles carry that it cannot be asked: no packet reaches it."""
    why = "what bundles carry is counted on the far side: `agent verify` in the spool that imports them"
    if settings.json:
        output.echo_json({"target": name, "verdict": "carried", "note": why})
    else:
        output.note(f"agent: {name}: {why}")


def _failed(settings: Settings, name: str, why: str, code: ExitCode) -> ExitCode:
    if settings.json:
        output.echo_json({"target": name, "verdict": "unverified", "problem": why})
    else:
        output.note(f"agent: {name}: {why}")
    return code


def _show(settings: Settings, bar: output.Progress, outcome: Outcome, verifier: Verifier, *, deep: bool) -> None:
    if settings.json:
        body: dict[str, Any] = outcome.as_dict()
        output.echo_json({**body, "deep": verifier.deep} if deep else body)
        return
    bar.finish()
    counts = f"{outcome.points} points, {outcome.events} events, {outcome.files} files"
    rest = "".join(f", {n} {word}" for n, word in ((outcome.waiting, "waiting"), (outcome.refused, "refused")) if n)
    output.echo(output.safe(f"{outcome.run}  {outcome.target}  {_WORDS.get(outcome.verdict, outcome.verdict)}  ({counts}{rest})"))
    shallow = ["--deep makes no difference to this target"] if deep and not verifier.deep else []
    for line in [*outcome.differences, *outcome.explained, *(f"note: {n}" for n in [*outcome.notes, *shallow])]:
        output.echo(output.safe(f"    {line}"))
