"""What the SDK raises, always for the caller's own mistakes or for what a Client asked for and could not have.

SdkError
├── NotInitialised (RuntimeError)     a call that needs Run.init (or reconnect, or attach) before it
├── RunClosed (RuntimeError)          a logging call after Run.close
├── ConfigError (ValueError)          a setting that cannot be used; its message names the file or variable
├── NotSerialisable (TypeError)       an object that save_object has no safe form for
├── ArtifactNotFound (LookupError)    the run has no artifact of this name, or its bytes are not there (yet)
├── AlertNotFound (LookupError)       no alert, or several, have the id or name that was given
├── ProcessNotStarted (OSError)       a process that could not be started: no place for its output, no such working folder
│   └── ProgramNotFound (FileNotFoundError)  its executable is not there, or not to be executed
├── UnsafeName (ValueError)           an artifact whose name has no place inside the target folder
└── ServerError (RuntimeError)        a server's answer that is not what was asked for; `status` is the HTTP status, 0 for none
    └── Unreachable (ConnectionError) no answer at all

Bad names and values raise `simspool.spool.InvalidRecord` (a ValueError); files that cannot be read `UnreadableFile` (an OSError); spools
that are not ours `InvalidSpool` and `NewerFormat`; unknown runs `RunNotFound`; corrupt bytes `DamagedBlob`.
"""

from __future__ import annotations

from simspool.spool.errors import InvalidRecord, InvalidSpool, RunNotFound, UnreadableFile


class SdkError(Exception):
    """Base of the SDK's own errors."""


class NotInitialised(SdkError, RuntimeError):
    """Raised when a method needs a run and `init`, `reconnect` or `attach` has not given one."""


class RunClosed(SdkError, RuntimeError):
    """Raised when something is logged to a run that this process has closed. `reconnect` opens it again."""


class ConfigError(SdkError, ValueError):
    """Raised when a setting or a configuration file cannot be used."""


class NotSerialisable(SdkError, TypeError):
    """Raised when an object has no safe serialised form; `allow_pickle=True` permits pickle."""


class ArtifactNotFound(SdkError, LookupError):
    """Raised when a run has no artifact of the name, or its bytes are gone or have not arrived."""


class AlertNotFound(SdkError, LookupError):
    """Raised when the spool or the run has no alert of this id or name, or several of one name. Its message lists the ids."""


class ProcessNotStarted(SdkError, OSError):
    """Raised when `add_process` could not start a process; its message names what is in the way."""


class ProgramNotFound(ProcessNotStarted, FileNotFoundError):
    """Raised when the executable of a process is not there, or may not be executed."""


class UnsafeName(SdkError, ValueError):
    """Raised when an artifact's name leads outside the target folder through a link that lies there, or names no file at all."""


class ServerError(SdkError, RuntimeError):
    """Raised when a server refuses, or answers something that is not its API. `status` is the HTTP status, 0 when there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(ServerError, ConnectionError):
    """Raised when a server does not answer."""


MISTAKES = (SdkError, InvalidRecord, InvalidSpool, RunNotFound, UnreadableFile)
"""What the methods of Run raise for the caller's mistakes, and keep to themselves with suppress_errors."""
