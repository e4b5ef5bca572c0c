"""The target of kind "bundle": what is sent to it goes by bundles, and what it acknowledges comes by receipts."""

from __future__ import annotations

from collections.abc import Sequence

from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.agent.targets.settings import BUNDLE, TargetSettings, own_targets, parse, save_own
from simspool.spool import Spool

NAME = "bundle"
"""The name of the one that is added where there is none."""


def choose(present: Sequence[TargetSettings], name: str | None = None) -> TargetSettings | None:
    """Return the target of kind "bundle" that is meant; None where there is none, and none is named.

    Raises CommandError for a name that is none of this kind, and where several are there and none is named.
    """
    found = {s.name: s for s in present if s.kind == BUNDLE}
    if name is not None:
        if name not in found:
            known = ", ".join(found) or "none"
            raise CommandError(ExitCode.USAGE, f"there is no target {name!r} of kind {BUNDLE!r}: there are {known}")
        return found[name]
    if len(found) > 1:
        raise CommandError(ExitCode.USAGE, f"there are several targets of kind {BUNDLE!r}: say --target {' or --target '.join(found)}")
    return next(iter(found.values()), None)


def add(spool: Spool, present: Sequence[TargetSettings]) -> TargetSettings:
    """Add the target to the spool's own, durably; returns it. Raises CommandError where its name is taken, ConfigError, OSError."""
    if any(s.name == NAME for s in present) or NAME in (own := own_targets(spool)):
        raise CommandError(
            ExitCode.USAGE, f"the target {NAME!r} is of another kind, or not enabled: `agent target add OTHER {BUNDLE}` makes one"
        )
    made = parse(NAME, {"kind": BUNDLE}, "spool")
    assert made is not None
    save_own(spool, {**own, NAME: {"kind": BUNDLE}})
    return made
