"""What a script needs to record itself, and to read back what was recorded.

    from simspool.sdk import Run

    with Run() as run:
        run.init("my run")
        run.log_metrics({"loss": 0.3}, step=1)

Only the standard library is needed. Names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simspool.spool.errors import DamagedBlob, InvalidRecord, InvalidSpool, NewerFormat, RunNotFound, SpoolError, UnreadableFile

    from .client import Client
    from .errors import (
        AlertNotFound,
        ArtifactNotFound,
        ConfigError,
        NotInitialised,
        NotSerialisable,
        ProcessNotStarted,
        ProgramNotFound,
        RunClosed,
        SdkError,
        ServerError,
        Unreachable,
        UnsafeName,
    )
    from .handler import Handler
    from .run import Run

__version__ = "0.1.0"
__all__ = [
    "Run", "Client", "Handler", "__version__",
    "SdkError", "NotInitialised", "RunClosed", "ConfigError", "NotSerialisable", "ArtifactNotFound", "AlertNotFound", "UnsafeName",
    "ServerError", "Unreachable", "ProcessNotStarted", "ProgramNotFound",
    "SpoolError", "InvalidRecord", "InvalidSpool", "NewerFormat", "UnreadableFile", "RunNotFound", "DamagedBlob",
]  # fmt: skip

_HOMES = {"Run": "simspool.sdk.run", "Client": "simspool.sdk.client", "Handler": "simspool.sdk.handler"}
_SPOOL_ERRORS = ("SpoolError", "InvalidRecord", "InvalidSpool", "NewerFormat", "UnreadableFile", "RunNotFound", "DamagedBlob")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    home = _HOMES.get(name) or ("simspool.spool.errors" if name in _SPOOL_ERRORS else "simspool.sdk.errors")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
