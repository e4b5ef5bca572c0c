"""The `agent` command (also `simspool`). Each sub-command is a module of its own, imported only when it is called.

Every error that we know becomes one line on stderr and a documented exit code (`simspool.agent.exit_codes`), never a
traceback; `SIMSPOOL_DEBUG=1` shows the traceback of what we did not expect.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import click

from simspool.agent.exit_codes import ExitCode, code_of
from simspool.spool import SpoolError

from . import output
from .settings import Settings, common

__all__ = ["main", "common", "Settings", "COMMANDS"]

# name -> (module, attribute, one line of help). A test holds each line against the command's own.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "run": ("run", "run", "Watch the spool and drain it to the server, until stopped."),
    "exec": ("exec", "exec_", "Run a command of any language as a recorded run."),
    "sync": ("sync", "sync", "Send what is recorded to the server, then stop."),
    "status": ("status", "status", "Show the agent, the targets and what waits to be sent."),
    "ls": ("status", "ls", "List the runs of the spool."),
    "show": ("status", "show", "Show one run: status, metrics, files, what was sent."),
    "cat": ("cat", "cat", "Print a run's records, in order."),
    "log": ("log", "log", "Record from a shell script: metrics, events, files, status."),
    "abort": ("abort", "abort", "Stop a run, in every process that records it."),
    "target": ("target", "target", "Add, list, remove and try the targets of the spool."),
    "verify": ("verify", "verify", "Recount runs on the targets, and compare with what was recorded."),
    "dead": ("dead", "dead", "Show what targets refused for good, and give up on it."),
    "retry": ("dead", "retry", "Try again what targets refused."),
    "check": ("check", "check", "Verify every segment and blob; report damage with its bounds."),
    "bundle": ("bundle", "bundle", "Carry runs over a gap: bundles there, receipts back."),
    "relay": ("relay", "relay", "Carry runs to another spool by a shared folder or SSH."),
    "alerts": ("alerts", "alerts", "Show, add, check and replay alert rules."),
    "notify": ("notify", "notify", "Tell people of alerts and ends of runs: try it out."),
    "serve": ("serve", "serve", "Serve a folder as a server that agents drain to."),
    "doctor": ("doctor", "doctor", "Look at everything that recording and syncing need here."),
    "wheelhouse": ("wheelhouse", "wheelhouse", "Make a folder from which simspool installs without a network."),
    "service": ("service", "service", "Run the agent, or a timer for syncs, as a systemd service."),
}


class _Commands(click.Group):
    """A group whose commands are imported when they are called; `--help` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(import_module(f"{__name__}.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except ImportError as error:
            hint = "install simspool with its dependencies (`pip install simspool`, without --no-deps)"
            raise click.ClickException(f"`agent {args[0]}` needs {error.name or error}: {hint}") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        def call() -> Any:
            return super(_Commands, self).main(
                args, prog_name, complete_var, standalone_mode=False, windows_expand_args=windows_expand_args, **extra
            )

        if not standalone_mode:
            return call()
        sys.exit(_exit_status(call))


def _exit_status(call: Callable[[], Any]) -> int:
    """Run a command and return its exit status; say in one line on stderr what went wrong."""
    try:
        result = call()
        sys.stdout.flush()
        return int(result) if isinstance(result, int) else ExitCode.OK
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else ExitCode.OK if stop.code is None else ExitCode.ERROR
    except click.Abort:
        return _fail("interrupted", ExitCode.INTERRUPTED)
    except click.UsageError as error:
        lines = error.format_message().replace("\t", "  ").splitlines()  # they may quote what somebody else named
        click.UsageError("\n".join(map(output.safe, lines)), error.ctx).show()
        return ExitCode.USAGE
    except click.ClickException as error:
        return _fail(error.format_message(), ExitCode.ERROR)
    except BrokenPipeError:
        _silence_stdout()  # whoever read our output has enough: nothing to say
        return ExitCode.ERROR
    except SpoolError as error:
        return _fail(error, code_of(error))
    except OSError as error:
        return _fail(error, code_of(error))
    except Exception as error:  # the last line of defence: a clear line instead of a traceback
        if os.environ.get("SIMSPOOL_DEBUG"):
            raise
        if type(error).__module__ == "sqlite3":
            from simspool.agent.catalog.store import state_folder

            where = f"SQLite says: {error}. The catalog lies in {state_folder()} (SIMSPOOL_STATE): does its disk refuse, or is it full?"
            return _fail(f"{where} Nothing is lost: a catalog is rebuilt from the spool", ExitCode.SPOOL_UNUSABLE)
        return _fail(f"unexpected {type(error).__name__}: {error} (SIMSPOOL_DEBUG=1 shows where)", code_of(error))


def _fail(message: object, code: ExitCode) -> ExitCode:
    try:
        sys.stdout.flush()
    except OSError:
        _silence_stdout()
    try:
        output.note(f"agent: {message}")
    except OSError:
        pass  # nobody listens there either
    return code


def _silence_stdout() -> None:
    """Keep the interpreter's own last flush from complaining about a pipe that is gone."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass  # no file behind it: nothing will be flushed


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="simspool", prog_name="simspool", message="%(prog)s %(version)s")
def main() -> None:
    """Record simulation and training runs offline, and drain them to a server.

    Scripts record with `from simspool.sdk import Run`. Everything here works on the spool that they write.
    """
