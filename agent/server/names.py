"""Names for runs that were given none: two words and four letters, the same for the same id."""

# ruff: noqa: SIM905 - a list of words reads best as words
from __future__ import annotations

import hashlib

_FIRST = (
    "amber brisk calm clear coral crisp dusky early fair fleet frosty gentle golden grand hazel idle ivory jade "
    "keen lunar mellow misty noble olive pale plain quiet rapid rosy rustic sable silent silver solar steady still "
    "stormy swift tidal vivid warm wild winter"
).split()
_SECOND = (
    "basin bay beacon brook canyon cape cliff cloud comet cove creek delta dune field fjord forest gale glade grove "
    "harbor heath hill island lagoon lake ledge marsh meadow mesa orbit peak plain pond prairie rapids reef ridge "
    "river shore spring strait summit valley wave"
).split()


def new_name(run: str) -> str:
    """Return the name of a run that has none."""
    digest = hashlib.blake2b(run.encode(), digest_size=8).digest()
    return f"{_FIRST[digest[0] % len(_FIRST)]}-{_SECOND[digest[1] % len(_SECOND)]}-{digest[2:4].hex()}"
