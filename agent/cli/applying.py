"""Applying a receipt from a command: by the running agent, which has the journal, or as the one that holds the spool."""

from __future__ import annotations

import time
from typing import Any

from simspool.spool import Locked, Spool

from .handover import agent_applies, api_path
from .view import opened_to_write

_WAIT = 30.0  # seconds for another command that has the spool


def apply_anywhere(spool: Spool, document: bytes, target: str) -> dict[str, Any]:
    """Apply a receipt's document for a target of kind "bundle"; returns what it changed (carry.applying.Applied.as_dict).

    Its signature is checked before. Raises NotTaken with the reason, and Locked while another command has the spool for long.
    """
    from simspool.agent.carry.applying import apply_receipt
    from simspool.agent.carry.receipts import parse_receipt

    receipt = parse_receipt(document)
    deadline = time.monotonic() + _WAIT
    while True:
        path = api_path(spool)
        done = agent_applies(path, target, document) if path else None
        if done is not None:
            return done
        try:
            with opened_to_write(spool) as (catalog, journal):
                return apply_receipt(spool, catalog, journal, receipt, target).as_dict()
        except Locked:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
