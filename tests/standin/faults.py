"""What goes wrong on purpose: each fault names the requests it wants and what happens to them."""

from __future__ import annotations

import asyncio
import random
import re
from typing import Any, Literal

from models import Body, Refused, check
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PrivateAttr


class Fault(Body):
    """One fault. See the starter's `faults` for examples.

    Attributes
    ----------
        do: What happens:
            drop: the connection is cut before the body is read;
            lose-reply: all is done and stored, then the connection is cut without an answer;
            half-reply: the same after half of the answer's body;
            delay: wait `seconds` before anything is done (other faults still apply);
            hang: read nothing, answer nothing, until the caller gives up;
            status: answer `status` (with `retry_after` seconds, and `body` as detail); `committed` does and stores the request first;
            html: 200 with a page that asks for a login;
            redirect: 302 to `location`, which unless given is that page;
            slow-body: the answer's body trickles over `seconds`;
            body-limit: 413 for a body over `bytes`;
            artifact-limit: 413 for an artifact that is declared, or sent, with over `bytes`;
            reject: `status` (422 or 400) for every batch with the metric `name`, an event that contains `name`, a run called `name`.
        path: Regular expression, searched in "METHOD /path", e.g. "POST /api/metrics$". All requests unless given.
        count: How often; None is for ever, and the default of the limits and of reject. Otherwise once.
        after: So many matching requests pass first.
        rate: Share of the matching requests, by `seed`.

    """

    do: Literal[
        "drop", "lose-reply", "half-reply", "delay", "hang", "status", "html", "redirect", "slow-body",
        "body-limit", "artifact-limit", "reject",
    ]  # fmt: skip
    path: str = ""
    count: NonNegativeInt | None = 1
    after: NonNegativeInt = 0
    rate: float = Field(1.0, ge=0, le=1)
    seed: int = 0
    seconds: NonNegativeFloat = 0.0
    status: int = Field(503, ge=400, le=599)
    retry_after: NonNegativeFloat | None = None
    body: str = "fault"
    committed: bool = False
    location: str = "/login"
    bytes: NonNegativeInt = 0
    kind: Literal["metric", "event", "run"] = "metric"
    name: str = ""
    fired: int = 0
    _seen: int = PrivateAttr(0)
    _rng: random.Random = PrivateAttr(default_factory=random.Random)

    def model_post_init(self, _context: Any) -> None:
        """Fill what depends on what was given."""
        self._rng.seed(self.seed)
        if "count" not in self.model_fields_set and self.do in {"body-limit", "artifact-limit", "reject"}:
            self.count = None
        if self.do == "reject" and "status" not in self.model_fields_set:
            self.status = 422

    def wants(self, line: str) -> bool:
        """Tell whether this request is hit, and count it as seen."""
        if (self.count is not None and self.fired >= self.count) or not re.search(self.path, line):
            return False
        self._seen += 1
        return self._seen > self.after and (self.rate >= 1 or self._rng.random() < self.rate)


class Faults:
    """All faults that are set, first set first."""

    def __init__(self) -> None:
        self.all: list[Fault] = []

    def set(self, body: object) -> list[dict[str, Any]]:
        """Add faults from a list, or from one. Raises Refused(422) for one that is not understood, and adds none then."""
        given = body if isinstance(body, list) else [body]
        new = [check(Fault, each) for each in given]
        for fault in new:
            try:
                re.compile(fault.path)
            except re.error as error:
                raise Refused(422, f"path {fault.path!r}: {error}") from None
        self.all += new
        return self.listed()

    def heal(self) -> list[dict[str, Any]]:
        """Take all faults away; return what is left, which is nothing."""
        self.all.clear()
        return self.listed()

    def listed(self) -> list[dict[str, Any]]:
        """Return all faults with how often each has fired."""
        return [fault.model_dump(exclude_unset=True) | {"fired": fault.fired} for fault in self.all]

    async def choose(self, line: str, size: int) -> Fault | None:
        """Return the first fault that changes this request's course; delays are waited out here."""
        for fault in self.all:
            if fault.do in {"reject", "artifact-limit"} or (fault.do == "body-limit" and size <= fault.bytes) or not fault.wants(line):
                continue
            fault.fired += 1
            if fault.do == "delay":
                await asyncio.sleep(fault.seconds)
            else:
                return fault
        return None

    def reject(self, line: str, kind: str, names: list[str]) -> None:
        """Raise Refused when one of the names is poisoned."""
        for fault in self.all:
            if fault.do == "reject" and fault.kind == kind:
                for name in names:
                    if (fault.name in name if kind == "event" else fault.name == name) and fault.wants(line):
                        fault.fired += 1
                        why = f"{kind} {name!r} is not accepted"
                        listed = [{"type": "value_error", "loc": ["body", kind], "msg": why}]
                        raise Refused(fault.status, listed if fault.status == 422 else why)

    def too_large(self, line: str, size: int) -> None:
        """Raise Refused(413) for an artifact beyond the limit."""
        for fault in self.all:
            if fault.do == "artifact-limit" and size > fault.bytes and fault.wants(line):
                fault.fired += 1
                raise Refused(413, f"Artifact of {size} bytes is over the limit of {fault.bytes} bytes")
