"""The on-disk format of simspool and nothing else: see FORMAT.md.

Standard library only; no threads, no network. `Writer` records, `Tail` reads, `blobs` keeps files, `layout` names everything.
"""

from typing import TYPE_CHECKING

from .errors import (
    DamagedBlob,
    DamagedSegment,
    InvalidRecord,
    InvalidSpool,
    Locked,
    NewerFormat,
    RunNotFound,
    SpaceExhausted,
    SpoolError,
    UnreadableFile,
)
from .layout import RunFolder, Spool, open_spool
from .records import Kind
from .segment_header import Drop, Durability
from .writer import Origin, Writer

if TYPE_CHECKING:
    from .reader import Chunk, Damage, Tail

__all__ = [
    "Spool", "RunFolder", "open_spool", "Writer", "Origin", "Durability", "Drop", "Kind", "Tail", "Chunk", "Damage",
    "SpoolError", "InvalidRecord", "InvalidSpool", "NewerFormat", "DamagedSegment", "DamagedBlob", "UnreadableFile", "RunNotFound",
    "Locked", "SpaceExhausted",
]  # fmt: skip

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import what reads when it is asked for: a script that only records need not pay for it."""
        if name in {"Tail", "Chunk", "Damage"}:
            from . import reader

            return getattr(reader, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
