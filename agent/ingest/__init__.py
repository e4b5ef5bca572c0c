"""Ingest: what writers append becomes positions and summaries in the catalog. Notifications are hints; the scan is sufficient."""

from .ingest import Ingest, Progress

__all__ = ["Ingest", "Progress"]
