"""The catalog: an index of the spool and the journal in SQLite on local disk.

Nothing in it is the only copy: delete it and it is rebuilt, with no loss and no second effect.
"""

from .store import Catalog

__all__ = ["Catalog"]
