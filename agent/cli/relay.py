"""`agent relay`: bundles and receipts that carry themselves, over a shared folder or SSH (docs/relay.md)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.spool import Locked, Spool

from . import output
from .applying import apply_anywhere
from .bundle import settle_spool
from .handover import agent_status
from .settings import Settings, common
from .view import open_view

if TYPE_CHECKING:
    from simspool.agent.relay.goals import RelayGoals
    from simspool.agent.relay.keeping import Sayer
    from simspool.agent.relay.sending import Sender
    from simspool.agent.relay.settings import RelaySettings
    from simspool.agent.sync import SyncReport
    from simspool.agent.targets.settings import TargetSettings

_TIMEOUT = 600.0
_ATTEMPTS = 4
_ASK_EVERY = 30.0  # seconds
_unsigned = click.option("--allow-unsigned", is_flag=True, help="Take also what is not signed, where keys are trusted.")
_every = click.option("--every", type=click.FloatRange(0.2, 86400), metavar="S", help="Seconds between looks (default: 5).")


@click.group(short_help="Carry runs to another spool by a shared folder or SSH.")
def relay() -> None:
    """Carry runs to another spool, and receipts back, by a shared folder or SSH: compute node, login node, server.

    A place is a folder (/path) or one behind SSH (ssh://[user@]host[:port]/path). `send` at the spool that records, `receive` at the one
    that is nearer to the server. `agent run` does both by itself where simspool.toml has a `[relay]` table.
    """


@relay.command(help="Send what is recorded to a place, and apply the receipts that come back.")
@click.argument("place", required=False)
@click.option("--target", "name", metavar="NAME", help='The target of kind "bundle" that is meant, where there are several.')
@click.option("--once", is_flag=True, help="End when everything that was recorded before is delivered.")
@click.option("--custody", is_flag=True, help="With --once: end when the other side has it.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=_TIMEOUT, show_default=True, metavar="S", help="With --once: wait for so long."
)  # fmt: skip
@_every
@click.option("--bundle-size", metavar="SIZE", help='About so much content goes into a bundle (default: "64 MB").')
@click.option("--ssh-key", metavar="FILE", help="The private key (default: the SSH agent's, and the user's usual ones).")
@click.option("--known-hosts", metavar="FILE", help="The keys of hosts (default: ~/.ssh/known_hosts).")
@_unsigned
@common
def send(
    settings: Settings, place: str | None, name: str | None, once: bool, custody: bool, timeout: float, every: float | None,
    bundle_size: str | None, ssh_key: str | None, known_hosts: str | None, allow_unsigned: bool,
) -> int:  # fmt: skip
    """Goes on until it is stopped, or with --once: exit status 0 when everything is delivered, 7 when the time is over, 3 when the place
    does not answer, 4 when it lets nobody in or something was refused. PLACE may be left out where `[relay] send` names it.
    """
    from simspool.agent.bundles.settings import parse_size

    if custody and not once:
        raise click.UsageError("--custody is for --once")
    chosen = _settings(settings)
    try:
        chosen = replace(
            chosen, send=place or chosen.send, every=every or chosen.every, target=name or chosen.target, ssh_key=ssh_key or chosen.ssh_key,
            known_hosts=known_hosts or chosen.known_hosts, bundle_size=parse_size(bundle_size) if bundle_size else chosen.bundle_size,
        )  # fmt: skip
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--bundle-size") from None
    if chosen.send is None:
        raise CommandError(ExitCode.USAGE, "no place is named: give one, or set [relay] send in simspool.toml")
    spool = settings.open_spool()
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(_send(settings, spool, chosen, once, custody, timeout, allow_unsigned))
    return ExitCode.OK


async def _send(
    settings: Settings, spool: Spool, chosen: RelaySettings, once: bool, custody: bool, timeout: float, allow_unsigned: bool
) -> ExitCode:
    from simspool.agent.leaving.settings import Leaving
    from simspool.agent.relay.keeping import Sayer, keep
    from simspool.agent.relay.place import open_place
    from simspool.agent.relay.sending import Means, Sender

    assert chosen.send is not None
    sayer = Sayer(_report())
    body: dict[str, Any] = {"runs": [], "folder": None, "tags": [], "where": []}

    async def settle() -> None:
        await asyncio.to_thread(settle_spool, settings, spool, body)

    async def apply(document: bytes, target: str) -> Mapping[str, Any]:
        return await asyncio.to_thread(apply_anywhere, spool, document, target)

    means = Means(settle, lambda: open_view(spool), apply, lambda: settings.targets_now(spool))
    place = open_place(chosen.send, chosen.ssh_key, chosen.known_hosts)
    leaving = Leaving(settings.config.leaving, settings.config.redact)
    sender = Sender(spool, place, means, chosen, settings.bundles, leaving, sayer, allow_unsigned=allow_unsigned)
    try:
        if once:
            return await _once(settings, spool, sender, means.settle, custody, timeout, sayer)
        _until_stopped()
        sayer.say(f"relaying from {spool.path} to {chosen.send}")
        await keep(sender.turn, sayer)
    except asyncio.CancelledError:
        if once:
            raise
        sayer.say("stopped")
    finally:
        await sender.close()
    return ExitCode.OK


async def _once(
    settings: Settings, spool: Spool, sender: Sender, settle: Callable[[], Awaitable[None]], custody: bool, timeout: float, sayer: Sayer
) -> ExitCode:
    from simspool.agent.relay.keeping import FAILURES, words
    from simspool.agent.relay.place import PlaceRefused, PlaceUnreachable

    server = (await asyncio.to_thread(lambda: sender.target)).address
    await settle()
    goals = await asyncio.to_thread(_goals, spool, server)
    deadline, failures, moved = time.monotonic() + timeout, 0, 0
    with output.Progress("relaying", quiet=settings.json) as bar:
        while True:
            problem: Exception | None = None
            try:
                wait = await sender.turn()
                failures = 0
            except PlaceRefused:
                raise
            except Locked:
                wait = 1.0  # another process relays from this spool: it does what is to be done
            except FAILURES as error:
                failures = 0 if sender.moved > moved else failures  # a line that breaks now and then brings it there all the same
                problem, failures, wait, moved = error, failures + 1, min(0.25 * 2.0**failures, 5.0), sender.moved
                sayer.wrong("", words(error))
                if not isinstance(error, PlaceUnreachable) and failures >= _ATTEMPTS:
                    raise CommandError(ExitCode.REFUSED, words(error)) from None
            report, left = await asyncio.to_thread(_look, spool, goals)
            is_done = left == 0 if custody else report.state == "done"
            done = report.records - report.records_left + report.files - report.files_left
            bar.update(done, report.records + report.files or None, f"{report.records_left} records, {report.files_left} files left")
            if is_done:
                return _end(settings, sender, report, custody, ExitCode.REFUSED if report.refused and not custody else ExitCode.OK)
            if isinstance(problem, PlaceUnreachable) and failures >= _ATTEMPTS:
                return _end(settings, sender, report, custody, ExitCode.UNREACHABLE)
            if time.monotonic() >= deadline:
                return _end(settings, sender, report, custody, ExitCode.TIMEOUT)
            await asyncio.sleep(min(wait, 1.0, max(deadline - time.monotonic(), 0.0)))


def _goals(spool: Spool, server: str) -> RelayGoals:
    from simspool.agent.relay.goals import RelayGoals

    with open_view(spool) as catalog:
        return RelayGoals(catalog, server)


def _look(spool: Spool, goals: RelayGoals) -> tuple[SyncReport, int]:
    with open_view(spool) as catalog:
        return goals.look(catalog), goals.custody_left(catalog)


def _end(settings: Settings, sender: Sender, report: SyncReport, custody: bool, code: ExitCode) -> ExitCode:
    if settings.json:
        output.echo_json({
            "state": {ExitCode.TIMEOUT: "timeout", ExitCode.UNREACHABLE: "unreachable"}.get(code, "custody" if custody else "done"),
            "bundles": sender.sent, "bytes": sender.sent_bytes, "runs": report.runs, "records": report.records,
            "records_left": report.records_left, "files": report.files, "files_left": report.files_left, "refused": report.refused,
            "exit_code": int(code),
        })  # fmt: skip
        return code
    sent = f"sent {sender.sent} bundles ({output.human_bytes(sender.sent_bytes)})"
    what = f"{report.runs} runs: {report.records} records, {report.files} files"
    left = f"{report.records_left} records and {report.files_left} files are not delivered yet"
    if code == ExitCode.OK:
        output.echo(f"the other side has {what}; {sent}; {left}" if custody and report.state != "done" else f"{what} are delivered; {sent}")
    elif code == ExitCode.REFUSED:
        output.note(f"agent: {report.refused} records or files were refused on the other side: `agent dead ls` shows them; {sent}")
    else:
        why = "the time is over" if code == ExitCode.TIMEOUT else "the place does not answer; nothing is lost, try again later"
        output.note(f"agent: {why}: {left}; {sent}")
    return code


@relay.command(help="Take what arrives in a place into the spool, and write receipts.")
@click.argument("place", required=False)
@click.option("--once", is_flag=True, help="Take what is there, then end.")
@_every
@_unsigned
@common
def receive(settings: Settings, place: str | None, once: bool, every: float | None, allow_unsigned: bool) -> int:
    """PLACE is a folder of this machine. An agent that runs on this spool sends what was taken to the servers: the tokens are here only.

    With --once: exit status 8 for a bundle that is altered or cut, 4 for one that is not for this spool or not signed by a trusted key.
    """
    from simspool.agent.relay.place import folder_of

    chosen = _settings(settings)
    if place is None and len(chosen.receive) != 1:
        raise CommandError(ExitCode.USAGE, "name the folder: [relay] receive in simspool.toml does not name one alone")
    if place is not None and place.startswith("ssh://"):
        raise CommandError(ExitCode.USAGE, "what arrives is taken on the machine where the folder is: run this there, with its path")
    path = folder_of(place or chosen.receive[0])
    spool = settings.open_spool(create=True)
    with contextlib.suppress(KeyboardInterrupt):
        return asyncio.run(_receive(settings, spool, path, every or chosen.every, once, allow_unsigned))
    return ExitCode.OK


async def _receive(settings: Settings, spool: Spool, path: str, every: float, once: bool, allow_unsigned: bool) -> ExitCode:
    from simspool.agent.relay.duty import receiving
    from simspool.agent.relay.keeping import Sayer, keep
    from simspool.agent.relay.receiving import Receiver

    sayer = Sayer(_report())
    receiver = Receiver(
        spool, path, lambda: open_view(spool), _Serving(settings, spool, sayer), settings.bundles, sayer,
        allow_unsigned=allow_unsigned,
    )  # fmt: skip
    try:
        if once:
            found = await asyncio.to_thread(receiver.turn)
            if settings.json:
                output.echo_json({**asdict(found), "exit_code": int(found.exit_code)})
            else:
                what = f"{found.bundles} bundles ({output.human_bytes(found.new_bytes)} were new), {found.receipts} receipts written"
                rest = (f"; {n} {word}" for n, word in ((found.refused, "refused"), (found.left, "wait")) if n)
                output.echo(f"took {what}{''.join(rest)}")
            return found.exit_code
        _until_stopped()
        sayer.say(f"taking what arrives in {path} into {spool.path}")
        await keep(receiving(receiver, every), sayer)
    except asyncio.CancelledError:
        if once:
            raise
        sayer.say("stopped")
    finally:
        receiver.close()
    return ExitCode.OK


class _Serving:
    """The targets that deliver what is taken: those of the settings, else those of the agent that runs here with settings of its own."""

    def __init__(self, settings: Settings, spool: Spool, sayer: Sayer) -> None:
        self._settings, self._spool, self._sayer = settings, spool, sayer
        self._asked, self._found = float("-inf"), list["TargetSettings"]()

    def __call__(self) -> list[TargetSettings]:
        from simspool.agent.targets.settings import BUNDLE, TargetSettings

        present = self._settings.targets_now(self._spool)
        if present:
            return present
        if time.monotonic() - self._asked > _ASK_EVERY:
            status = agent_status(self._spool)
            named = status["agent"]["targets"] if status is not None else []
            kinds = {True: BUNDLE, False: "simspool"}
            self._found = [
                TargetSettings(t["name"], kinds[t["url"].startswith(f"{BUNDLE}:")], t["url"], required=t["required"]) for t in named
            ]
            self._asked = time.monotonic() if self._found else float("-inf")
        if self._found:
            self._sayer.right("targets")
        else:
            self._sayer.wrong("targets", "no server is configured here, and no agent runs that has one: nothing counts as delivered yet")
        return self._found


def _until_stopped() -> None:
    """SIGTERM and SIGINT end the command clean."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


def _report() -> Callable[[str], None]:
    return lambda text: output.note(output.safe(f"agent: {text}"))


def _settings(settings: Settings) -> RelaySettings:
    from simspool.agent.relay.settings import parse

    return parse(settings.config.relay, settings.config.sources.get("relay", ""))
