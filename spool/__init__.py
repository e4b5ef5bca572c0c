"""The on-disk format of simspool and nothing else: see FORMAT.md.

Standard library only; no threads, no network. `Writer` records, `Tail` reads, `blobs` keeps files, `layout` names everything.
"""

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
from .reader import Chunk, Damage, Tail
from .records import Kind
from .segment_header import Drop, Durability
from .writer import Origin, Writer

__all__ = [
    "Spool", "RunFolder", "open_spool", "Writer", "Origin", "Durability", "Drop", "Kind", "Tail", "Chunk", "Damage",
    "SpoolError", "InvalidRecord", "InvalidSpool", "NewerFormat", "DamagedSegment", "DamagedBlob", "UnreadableFile", "RunNotFound",
    "Locked", "SpaceExhausted",
]  # fmt: skip
