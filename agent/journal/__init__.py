"""The agent's journal: intents, receipts and prunes, in the spool itself, fsynced. The catalog is only its index."""

from .journal import Cursor, Journal, NotHolder

__all__ = ["Cursor", "Journal", "NotHolder"]
