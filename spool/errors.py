"""Everything that the spool raises.

SpoolError
├── InvalidRecord (ValueError)     the caller's mistake: a value that cannot be recorded
├── InvalidSpool                   the folder is not a spool, or not ours to use
│   └── NewerFormat                a newer major version: left untouched
├── DamagedSegment                 bytes that do not verify where they must
├── DamagedBlob                    bytes that do not match their name
├── UnreadableFile (OSError)       an artifact that cannot be read as a regular file
├── RunNotFound (LookupError)      no run, or several, match what was asked for
├── Locked                         another agent serves this spool
└── SpaceExhausted (OSError)       no space could be allocated
"""

from __future__ import annotations


class SpoolError(Exception):
    """Base of all errors of the spool."""


class InvalidRecord(SpoolError, ValueError):
    """Raised when a name, value or size is outside what the format can hold. Nothing was recorded."""


class InvalidSpool(SpoolError):
    """Raised when a folder is not a spool, or its owner or mode make it unsafe to use."""


class NewerFormat(InvalidSpool):
    """Raised when the spool or a segment has a newer major version. It was left untouched: upgrade simspool."""


class DamagedSegment(SpoolError):
    """Raised when a header or a frame does not verify where nothing less will do."""


class DamagedBlob(SpoolError):
    """Raised when a blob's bytes do not have the digest that names them."""


class UnreadableFile(SpoolError, OSError):
    """Raised when an artifact is missing, a folder, a FIFO, a device, or may not be read."""


class RunNotFound(SpoolError, LookupError):
    """Raised when no run, or more than one, has the given id, prefix or name."""


class Locked(SpoolError):
    """Raised when another process holds the spool's lock. Its message names the owner."""


class SpaceExhausted(SpoolError, OSError):
    """Raised when a segment's space could not be allocated: the disk, the quota or the file size limit is reached."""
