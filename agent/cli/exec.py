"""`agent exec`: run a command of any language as a recorded run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import click

from simspool.agent.exit_codes import CommandError, ExitCode

from . import output
from .settings import Settings, common

if TYPE_CHECKING:
    from simspool.agent.lines.patterns import Patterns

_SIZE = re.compile(r"(\d+)\s*([kKMGT]?)(i?B)?")
_UNITS = {"": 1, "k": 1 << 10, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class _Size(click.ParamType[int]):
    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a size: write 0, 65536, 512K or 16M", param, ctx)
        return int(match[1]) * _UNITS[match[2]]


@click.command(
    "exec", help="Run a command of any language as a recorded run.", context_settings={"allow_interspersed_args": False}
)
@click.option("--name", metavar="NAME", help="The run's name; made up by default.")
@click.option("--folder", metavar="PATH", help="The run's folder; begins with /.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag; may be repeated.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="Metadata; may be repeated. Numbers, true and false are taken as such.")
@click.option("--description", metavar="TEXT", help="For people.")
@click.option(
    "--metric", "metrics", multiple=True, metavar="REGEX", help="Metrics by named groups, in what the command prints, or in --follow."
)
@click.option("--event", "events", multiple=True, metavar="REGEX", help="Lines that are events; may be repeated.")
@click.option(
    "--follow", multiple=True, metavar="FILE",
    help="Look for metrics and events in this log (or these: a pattern), not in what is printed. - is what is printed.",
)  # fmt: skip
@click.option("--output", "outputs", multiple=True, metavar="GLOB", help="Files to save, as they settle and at the end; quote the pattern.")
@click.option("--input", "inputs", multiple=True, metavar="FILE", help="A file to save before the command starts, as input.")
@click.option("--code", multiple=True, metavar="FILE", help="A file to save before the command starts, as code.")
@click.option(
    "--settle", type=click.FloatRange(0), default=5.0, show_default=True, metavar="S",
    help="Seconds without change until a file counts as settled.",
)  # fmt: skip
@click.option("--alerts", "alert_file", metavar="FILE", help="Alerts for this run: [[alerts]] tables in TOML.")
@click.option("--abort-when", multiple=True, metavar="CONDITION", help="Stop the command: 'METRIC RULE [NUMBER]'; may be repeated.")
@click.option("--alert-when", multiple=True, metavar="CONDITION", help="The same, without stopping it.")
@click.option("--run", "run", metavar="RUN", help="Record into a run that is there already.")
@click.option("--rank", type=click.IntRange(0), metavar="N", help="This process's rank; by default as MPI or Slurm set it.")
@click.option("--pty/--no-pty", "pty", default=None, help="Give the command a terminal as stdout, or none; by default as ours is.")
@click.option(
    "--keep-output", "keep", type=_Size(), default=16 << 20, metavar="BYTES", help="How much of stdout and of stderr is kept, each [16M]."
)
@click.option("--agent", type=click.Choice(("auto", "off")), help="Whether an agent is started where none runs; as configured by default.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND [ARGUMENT]...")
@common
def exec_(settings: Settings, /, **options: Any) -> int:
    """Ends as the command ends: with its exit code, or by its signal."""
    from simspool.agent.execute.ending import end_like
    from simspool.agent.execute.session import Session
    from simspool.spool import InvalidRecord

    session = Session(_plan(settings, **options))
    try:
        how = session.execute()
    except InvalidRecord as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    if settings.json:
        output.note(output.json_line(session.summary(how)))
    return end_like(how)


def _plan(
    settings: Settings, *, name: str | None, folder: str | None, tags: tuple[str, ...], meta: tuple[str, ...], description: str | None,
    metrics: tuple[str, ...], events: tuple[str, ...], follow: tuple[str, ...], outputs: tuple[str, ...], inputs: tuple[str, ...],
    code: tuple[str, ...], settle: float, alert_file: str | None, abort_when: tuple[str, ...], alert_when: tuple[str, ...],
    run: str | None, rank: int | None, pty: bool | None, keep: int, agent: Literal["auto", "off"] | None, command: tuple[str, ...],
) -> Any:  # fmt: skip
    """Check everything that was given, before anything is begun."""
    from simspool.agent.execute import conditions
    from simspool.agent.execute.recorder import Category, command_text
    from simspool.agent.execute.session import Plan
    from simspool.sdk import validation
    from simspool.sdk.redaction import Redactor
    from simspool.spool import InvalidRecord

    config = settings.config
    redactor = Redactor.of(config.redact)
    if run is not None and (name is not None or folder is not None or tags or meta or description is not None):
        raise click.UsageError("--run records into a run that has its name, folder, tags and metadata already: leave these options out")
    if rank is not None and run is None:
        raise click.UsageError("--rank is for a part of a run that is there already: give --run as well")
    if follow and not (metrics or events):
        raise click.UsageError("--follow needs --metric or --event: what is to be found in the log")
    patterns = _patterns(metrics, events)
    saved: list[tuple[str, Category]] = [*((p, "input") for p in inputs), *((p, "code") for p in code)]
    for path, category in saved:
        if not os.path.isfile(path):
            raise click.UsageError(f"--{category} {path}: there is no such file")
    try:
        metadata = _metadata(meta)
        fields: dict[str, Any] = {"metadata": {"command": command_text(command, redactor), "cwd": os.getcwd(), **metadata}}
        if name is not None:
            fields["name"] = validation.check_name("run name", name)
        if folder is not None:
            fields["folder"] = validation.check_folder(folder)
        if tags:
            fields["tags"] = validation.check_tags(list(tags))
        if description is not None:
            fields["description"] = description
        validation.check_metadata(fields["metadata"])
        alerts: list[Mapping[str, Any]] = [conditions.parse(text, abort=True) for text in abort_when]
        alerts += [conditions.parse(text, abort=False) for text in alert_when]
    except InvalidRecord as error:
        raise click.UsageError(output.safe(error)) from None
    if alert_file is not None:
        alerts += conditions.of_file(alert_file, {"folder": "/", "name": "", "tags": [], **fields})
    os.environ["SIMSPOOL_DIR"] = config.spool_dir
    return Plan(
        command=command, spool_dir=config.spool_dir, fields=fields, patterns=patterns, follow=[path for path in follow if path != "-"],
        reads_output=not follow or "-" in follow, outputs=outputs,
        saved_first=[(os.path.abspath(path), category) for path, category in saved], alerts=alerts, run=run, rank=rank,
        terminal="auto" if pty is None else "always" if pty else "never", keep=keep, settle=settle, agent=agent,
        starts_agent=(agent or config.agent) == "auto", url=config.server_url, token=config.server_token,
        redactor=redactor,
    )  # fmt: skip


def _patterns(metrics: tuple[str, ...], events: tuple[str, ...]) -> Patterns:
    from simspool.agent.lines.patterns import InvalidPattern, Patterns

    try:
        return Patterns(metrics, events)
    except InvalidPattern as error:
        raise click.UsageError("\n".join(map(output.safe, str(error).split("\n")))) from None


def _metadata(given: tuple[str, ...]) -> dict[str, Any]:
    from simspool.spool import InvalidRecord

    found: dict[str, Any] = {}
    for text in given:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise InvalidRecord(f"--meta {text!r} is not KEY=VALUE")
        found[key] = _value(value)
    return found


def _value(text: str) -> bool | int | float | str:
    if text in {"true", "false"}:
        return text == "true"
    for kind in (int, float) if "_" not in text else ():  # 7_0 is the key of an array's element, and to Python a number
        try:
            return kind(text)
        except ValueError:
            continue
    return text
