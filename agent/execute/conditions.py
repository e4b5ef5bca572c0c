"""Alerts of the command line: `--abort-when "residual is not finite"`, `--alert-when "T_max is above 1e4"`, and those of a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from simspool.spool import InvalidRecord, Kind, alert_definition, runstate

_RULES = (
    "is above", "is below", "is inside range", "is outside range", "is not finite", "rate is above", "rate is below", "no progress",
)  # fmt: skip
_NUMBERS = {"is inside range": 2, "is outside range": 2, "is not finite": 0}
_FORM = re.compile(rf"(?P<metric>\S.*?)\s+(?P<rule>{'|'.join(rule.replace(' ', chr(92) + 's+') for rule in _RULES)})(?P<rest>.*)")
_NO_NAME = re.compile(r"[^a-zA-Z0-9\-_\s/.:]")


def parse(text: str, *, abort: bool) -> dict[str, Any]:
    """Return the alert that a condition means. Any one value counts, not the average of several. Raises InvalidRecord."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise InvalidRecord(f"{text!r} is no condition: write METRIC RULE [NUMBER], where RULE is one of {', '.join(_RULES)}")
    rule = " ".join(match["rule"].split())
    numbers = match["rest"].replace(",", " ").split()
    wanted = _NUMBERS.get(rule, 1)
    if len(numbers) != wanted:
        shown = {0: "no number", 1: "one number", 2: "two numbers"}[wanted]
        raise InvalidRecord(f"{text!r}: {rule!r} takes {shown}, not {' '.join(numbers) or 'none'!r}")
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        raise InvalidRecord(f"{text!r}: {' '.join(numbers)!r} is not {'a number' if wanted == 1 else 'two numbers'}") from None
    given: dict[str, Any] = {"metric": match["metric"], "rule": rule}
    if wanted == 2:
        given |= {"range_low": values[0], "range_high": values[1]}
    elif rule == "no progress":
        given["window"] = values[0]
    elif wanted == 1:
        given["threshold"] = values[0]
    if rule.startswith("is ") and rule != "is not finite":
        given["aggregation"] = "at least one"
    return alert_definition.define(_NO_NAME.sub("_", text.strip())[:1024], "metrics", trigger_abort=abort, **given)


def of_file(path: str, fields: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the alerts of a file of [[alerts]] (docs/alerts.md) that are meant for a run with these fields. Raises InvalidSiteFile."""
    from simspool.agent.alerts import site

    state = runstate.empty()
    runstate.apply(state, "", 1, Kind.RUN, 0, fields)
    return site.matching(site.load(path), state)
