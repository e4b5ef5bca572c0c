"""`agent log`: record from shell scripts, a line at a time (docs/inbox.md)."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Sequence
from typing import Any

import click

from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.spool import InvalidRecord, RunFolder, Spool, UnreadableFile

from . import output
from .settings import Settings, common

_run = click.option("--run", "run", metavar="RUN", help="The run (SIMSPOOL_RUN).")


@click.group(help="Record from a shell script: metrics, events, files, status.")
def log() -> None:
    """Record into the run that SIMSPOOL_RUN names, or --run. Exit status 0 when what was said is kept.

    A script begins with: eval "$(agent log run --export --name NAME)"
    """


@log.command("run")
@click.option("--name", metavar="NAME", help="The run's name.")
@click.option("--folder", default="/", metavar="FOLDER", help="The run's folder on the server.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag; may be repeated.")
@click.option("--meta", "metadata", multiple=True, metavar="K=V", help="An entry of metadata; may be repeated.")
@click.option("--description", metavar="TEXT", help="What it is.")
@click.option("--pid", type=click.IntRange(min=1), metavar="PID", help="The process whose end is the run's; default: the calling shell.")
@click.option("--export", "export", is_flag=True, help="Print the shell lines that set SIMSPOOL_RUN, SIMSPOOL_INBOX and SIMSPOOL_DIR.")
@common
def run_(
    settings: Settings, name: str | None, folder: str, tags: tuple[str, ...], metadata: tuple[str, ...], description: str | None,
    pid: int | None, *, export: bool,
) -> int:  # fmt: skip
    """Begin a run that ends with the calling shell, or with another process, and print its id."""
    from simspool.agent.inbox import shell

    spool = settings.open_spool(create=True)
    found = dict(_pair(word, _value) for word in metadata)
    try:
        run = shell.begin(
            spool, pid or shell.calling_shell(), name=name, folder=folder, tags=tags, metadata=found, description=description
        )
    except OSError as error:
        raise CommandError(ExitCode.SPOOL_UNUSABLE, f"cannot record into {spool.path}: {error.strerror or error}") from None
    _tell(settings, spool, run)
    if settings.json:
        output.echo_json({"run": run.id, "inbox": run.inbox, "spool": spool.path})
    elif export:
        for key, value in (("SIMSPOOL_RUN", run.id), ("SIMSPOOL_INBOX", run.inbox), ("SIMSPOOL_DIR", spool.path)):
            output.echo(f"export {key}={shlex.quote(value)}")
    else:
        output.echo(run.id)
    return ExitCode.OK


@log.command()
@click.argument("metrics", nargs=-1, required=True, metavar="NAME=NUMBER...")
@click.option("--step", type=click.IntRange(min=0), help="The step; default: how often metrics were logged before.")
@click.option("--time", "seconds", type=float, metavar="S", help="Seconds since the run's start; default: now.")
@_run
@common
def metric(settings: Settings, metrics: tuple[str, ...], step: int | None, seconds: float | None, run: str | None) -> int:
    """Log numbers, as C, Fortran and shells print them: 0.3, .9, 1D3, nan, -inf. All of one call are one point of each."""
    line: dict[str, Any] = {"metrics": dict(_pair(word, _number) for word in metrics)}
    if step is not None:
        line["step"] = step
    if seconds is not None:
        line["time"] = seconds
    return _append(settings, run, line, at=("time", "timestamp"))


@log.command()
@click.argument("text")
@click.option("--level", type=click.Choice(["debug", "info", "warning", "error", "critical"]), help="How grave it is.")
@_run
@common
def event(settings: Settings, text: str, level: str | None, run: str | None) -> int:
    """Log a message."""
    return _append(settings, run, {"event": text} | ({"level": level} if level else {}), at=("timestamp",))


@log.command()
@click.argument("path")
@click.option("--category", type=click.Choice(["input", "output", "code"]), default="output", show_default=True, help="What it is.")
@click.option("--name", metavar="NAME", help="Its name in the run; default: the file's.")
@_run
@common
def file(settings: Settings, path: str, category: str, name: str | None, run: str | None) -> int:
    """Save a file's present content."""
    from simspool.spool import blobs, pressure

    spool, folder = _target(settings, run)
    line: dict[str, Any] = {"file": os.path.abspath(path), "category": category} | ({"name": name} if name is not None else {})
    _check(folder, line)
    word = pressure.read(spool.path)
    if word is not None and word[0].level >= pressure.FILES:
        raise CommandError(ExitCode.SPOOL_UNUSABLE, f"{path} is not saved, the spool takes no files now: {word[0].why}. Free some space")
    try:
        blob = blobs.put_file(spool, folder, path)
        blobs.publish(spool, folder, [blob.digest])
    except UnreadableFile as error:
        raise CommandError(ExitCode.USAGE, error.strerror or str(error)) from None
    except OSError as error:
        raise CommandError(ExitCode.SPOOL_UNUSABLE, f"cannot save {path} into {spool.path}: {error.strerror or error}") from None
    return _append(settings, run, line | {"digest": blob.digest, "size": blob.size})


@log.command()
@click.argument("pairs", nargs=-1, required=True, metavar="K=V...")
@_run
@common
def meta(settings: Settings, pairs: tuple[str, ...], run: str | None) -> int:
    """Add metadata. Numbers, true and false are taken as such, everything else as text."""
    return _append(settings, run, {"metadata": dict(_pair(word, _value) for word in pairs)})


@log.command()
@click.argument("tags", nargs=-1, required=True, metavar="TAG...")
@_run
@common
def tag(settings: Settings, tags: tuple[str, ...], run: str | None) -> int:
    """Add tags."""
    return _append(settings, run, {"tags": list(tags)})


@log.command()
@click.argument("name")
@click.argument("state", type=click.Choice(["ok", "critical"]))
@_run
@common
def alert(settings: Settings, name: str, state: str, run: str | None) -> int:
    """Set the state of an alert of source `user`; one that the run does not have is defined, without an abort."""
    from simspool.spool import control

    _, folder = _target(settings, run)
    if control.read_alert(control.alert_file(folder, name)) is None:
        _append(settings, run, {"define": {"name": name, "source": "user"}})
        return _append(settings, run, {"alert": name, "state": state}, check=False)
    return _append(settings, run, {"alert": name, "state": state})


@log.command()
@click.option("--status", type=click.Choice(["completed", "failed", "terminated"]), help="How it ended.")
@click.option("--code", type=click.IntRange(0, 255), metavar="N", help="An exit status in its place: $? of what ran. 0 is completed.")
@click.option("--reason", metavar="TEXT", help="Why.")
@_run
@common
def end(settings: Settings, status: str | None, code: int | None, reason: str | None, run: str | None) -> int:
    """Set the status with which the run ends. Without it, the shell's own exit status counts."""
    if (status is None) == (code is None):
        raise click.UsageError("say how it ended: either --status, or --code $?")
    if code is not None:
        status = "failed" if code else "completed"
        reason = reason if reason is not None or not code else f"exit code {code}" if code < 128 else f"signal {code - 128}"
    return _append(settings, run, {"status": status} | ({"reason": reason} if reason is not None else {}))


# ------------------------------------------------------------------ what they share


def _pair(word: str, value: Any) -> tuple[str, Any]:
    name, equals, text = word.rpartition("=")
    if not equals or not name:
        raise click.UsageError(f"{word!r} is not of the form NAME=VALUE")
    return name, value(name, text)


def _number(name: str, text: str) -> float | int:
    from simspool.agent.inbox.lenient import NotUnderstood, number

    try:
        return number(text)
    except NotUnderstood:
        raise click.UsageError(f"metric {name} must be a number, not {text!r}") from None


def _value(_: str, text: str) -> Any:
    from simspool.agent.inbox.lenient import NotUnderstood, number

    if text in {"true", "false"}:
        return text == "true"
    try:
        return number(text)
    except NotUnderstood:
        return text


def _target(settings: Settings, wanted: str | None) -> tuple[Spool, RunFolder]:
    wanted = wanted or os.environ.get("SIMSPOOL_RUN")
    if not wanted:
        raise click.UsageError('which run? begin one with eval "$(agent log run --export)", or give --run, or set SIMSPOOL_RUN')
    spool = settings.open_spool()
    return spool, spool.run(spool.find_own_run(wanted))


def _check(folder: RunFolder, line: dict[str, Any]) -> None:
    """Let the inbox's own reader say what is wrong with a line, before it is there."""
    from simspool.agent.inbox.lenient import NotUnderstood
    from simspool.agent.inbox.lines import Reader
    from simspool.sdk.validation import check_metric_name

    try:
        Reader(folder).check(line)
        for name in line.get("metrics", ()):
            check_metric_name(name)
    except (NotUnderstood, InvalidRecord) as error:
        raise click.UsageError(str(error)) from None


def _append(settings: Settings, run: str | None, line: dict[str, Any], *, at: Sequence[str] = (), check: bool = True) -> int:
    from simspool.agent.inbox.append import append, moment
    from simspool.spool import atomic

    spool, folder = _target(settings, run)
    if at:
        line = {k: v for k, v in moment(folder.inbox).items() if k in at} | line
    if check:
        _check(folder, line)
    try:
        atomic.make_folder(folder.inbox)
        path = append(folder.inbox, line)
    except OSError as error:
        raise CommandError(ExitCode.SPOOL_UNUSABLE, f"cannot record into {folder.inbox}: {error.strerror or error}") from None
    _tell(settings, spool, folder)
    if settings.json:
        output.echo_json({"run": folder.id, "file": path, "line": line})
    return ExitCode.OK


def _tell(settings: Settings, spool: Spool, run: RunFolder) -> None:
    """Ring the agent that serves the spool; start one where none does, if the configuration wants it. Neither is needed for the line."""
    from simspool.agent.inbox.ring import ring

    if not ring(spool.path, run.id) and settings.config.agent == "auto":
        from simspool.sdk.agent_start import AgentStarter

        with contextlib.suppress(OSError):
            AgentStarter(settings.config, spool.path).consider()
