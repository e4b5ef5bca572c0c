"""Which looks there are, in which order, and how long each may take. Once the spool's disk has hung, it is not asked again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from . import disk, leftovers, machine, servers, serving
from .findings import Check, Finding, Site
from .isolated import look

REACHED = "disk"
CHECKS = (
    Check(REACHED, disk.reached, 10.0, disk=True),
    Check("python", machine.python, 20.0),
    Check("settings", servers.tokens, 20.0),
    Check("spool", disk.spool, 30.0, disk=True),
    Check("file system", disk.file_system, 30.0, disk=True),
    Check("durability", disk.durability, 60.0, disk=True),
    Check("index", disk.state, 10.0),
    Check("clock", machine.clock, 15.0),
    Check("targets", servers.targets, 120.0),
    Check("agent", serving.agent, 30.0, disk=True),
    Check("service", serving.service, 30.0),
    Check("other hosts", serving.elsewhere, 10.0, disk=True),
    Check("limits", machine.limits, 15.0),
    Check("site", machine.policy, 30.0),
    Check("leftovers", leftovers.leftovers, 30.0, disk=True),
)


def examine(
    site: Site, checks: Iterable[Check] = CHECKS, *, started: Callable[[str], None] = lambda _: None
) -> Iterator[Finding]:
    """Yield what all looks find, each in a process of its own; `started` hears of each that begins.

    Never raises for what is wrong with the machine.
    """
    for check in checks:
        started(check.name)
        if check.disk and site.answers is False:
            yield Finding(check.name, "skipped", "the spool's disk did not answer")
            continue
        for finding in look(check, site):
            if check.disk and finding.facts.get("hung"):
                site.answers = False
            yield finding
        if check.name == REACHED and site.answers is None:
            site.answers = True
