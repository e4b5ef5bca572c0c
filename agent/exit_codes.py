"""The exit codes of every command: an interface, so they never change their meaning."""

from __future__ import annotations

from enum import IntEnum

from simspool.spool import (
    DamagedBlob,
    DamagedSegment,
    InvalidRecord,
    InvalidSpool,
    Locked,
    NewerFormat,
    RunNotFound,
    SpaceExhausted,
    SpoolError,
)


class ExitCode(IntEnum):
    """What a command's exit status says."""

    OK = 0
    """Done. For `agent sync`: everything recorded before it started is acknowledged by the required targets."""
    ERROR = 1
    """An error that has no code of its own, or the reader of the output went away."""
    USAGE = 2
    """The command line, or a value in it, is wrong."""
    UNREACHABLE = 3
    """The server does not answer. Nothing is lost: try again later."""
    REFUSED = 4
    """The server refuses the token, or refused records for good (they are in the dead letter)."""
    NO_TARGET = 5
    """No server is configured."""
    NEWER_FORMAT = 6
    """The spool, or a part of it, was written by a newer simspool. It was left untouched."""
    TIMEOUT = 7
    """Not everything was acknowledged in the time that `--timeout` gives."""
    DAMAGE = 8
    """`agent check` found damage."""
    RUN_NOT_FOUND = 9
    """No run, or more than one, matches what was asked for."""
    SPOOL_UNUSABLE = 10
    """There is no spool, it is not yours, the disk refuses it, or another agent holds it."""
    DIFFERENT = 11
    """`agent verify` found that a target has something else than it acknowledged."""
    INTERRUPTED = 130
    """Ctrl-C."""


class CommandError(SpoolError):
    """Raised by a command that cannot go on: the message says what to type next, the code is the exit status."""

    def __init__(self, exit_code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


_CODES: tuple[tuple[type[BaseException], ExitCode], ...] = (  # the first match counts
    (NewerFormat, ExitCode.NEWER_FORMAT),
    (RunNotFound, ExitCode.RUN_NOT_FOUND),
    (InvalidSpool, ExitCode.SPOOL_UNUSABLE),
    (Locked, ExitCode.SPOOL_UNUSABLE),
    (SpaceExhausted, ExitCode.SPOOL_UNUSABLE),
    (DamagedSegment, ExitCode.DAMAGE),
    (DamagedBlob, ExitCode.DAMAGE),
    (InvalidRecord, ExitCode.USAGE),
    (KeyboardInterrupt, ExitCode.INTERRUPTED),
)


def code_of(error: BaseException) -> ExitCode:
    """Return the exit code for an error: its own `exit_code` where it has one, else by its class."""
    own = getattr(error, "exit_code", None)
    if own is not None:
        return ExitCode(own)
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.ERROR)
