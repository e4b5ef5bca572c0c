"""From evidence to a status: one row a cause (docs/survivors.md). The most specific piece decides; all are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simspool.sdk.process_exit import Exit
from simspool.spool.segment_header import SegmentHeader

from .memory import OutOfMemory
from .slurm import ENDS, JobState


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a process that is gone without a close record.

    `abort`: the agent's own record of having stopped it. `elsewhere`: it was of another host, and its job is over. `rebooted`: the host
    has booted since. `ended`: run seconds, where it was seen.
    """

    header: SegmentHeader
    exit: Exit | None = None
    oom: OutOfMemory | None = None
    job: JobState | None = None
    abort: Mapping[str, Any] | None = None
    elsewhere: bool = False
    rebooted: bool = False
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A writer's end: its status, the cause in a word, and the reason for people."""

    status: str
    cause: str
    reason: str


def judge(found: Evidence) -> Verdict:
    """Return what the evidence says. Without any the writer is `lost`: never failed."""
    if found.abort is not None:
        why = found.abort.get("reason")
        return Verdict("terminated", "aborted", f"aborted: {why}" if isinstance(why, str) and why else "aborted")
    if found.job is not None and found.job.is_end:
        status, words = ENDS[found.job.state]
        more = f" {found.job.reason}" if found.job.reason.startswith("by ") else ""  # by whom; else it repeats the state
        return Verdict(status, found.job.state.lower().replace("_", "-"), f"Slurm job {found.job.job} {words}{more}")
    if found.oom is not None:
        return Verdict("failed", "out-of-memory", _memory(found.oom))
    if found.exit is not None:
        return _exit(found.exit)
    if found.rebooted:
        return Verdict("terminated", "rebooted", "the machine was booted while it ran")
    if found.elsewhere and found.job is not None:
        over = f"Slurm job {found.job.job} is over ({found.job.state})"
        return Verdict("lost", "job-over", f"{over}, and nothing says how this process ended")
    return Verdict("lost", "process-gone", "its process is gone; nothing says why")


def _memory(oom: OutOfMemory) -> str:
    if oom.cgroup is None:
        return "killed by the kernel: the machine was out of memory"
    limit = "its limit" if oom.limit is None else f"the limit of {oom.limit / (1 << 20):,.0f} MiB"
    return f"killed by the kernel: out of memory, {limit} of cgroup {oom.cgroup or 'unknown'}"


def _exit(end: Exit) -> Verdict:
    if end.signal is not None:
        core = ", a core was dumped" if end.core else ""
        if end.crashed:
            return Verdict("failed", "crashed", f"it crashed: {end.name}{core}")
        return Verdict("terminated", "signal", f"ended by {end.name}{core}")
    if end.code:
        return Verdict("failed", "exit-code", f"it ended with exit code {end.code}")
    return Verdict("completed", "exit-code", "it ended with exit code 0, without closing the run")


def survivor_body(writer: str, last: int, found: Evidence, verdict: Verdict) -> dict[str, Any]:
    """Return the record of a writer's end (FORMAT.md, kind 41)."""
    header = found.header
    evidence: dict[str, Any] = {"reason": verdict.cause, "pid": header.pid, "host": header.host, "start_ticks": header.start_ticks}
    if found.abort is not None:
        evidence["abort"] = found.abort.get("id")
    for name, piece in (("slurm", found.job), ("oom", found.oom), ("exit", found.exit)):
        if piece is not None:
            evidence[name] = piece.as_dict()
    if found.exit is not None and found.exit.signal is not None:
        evidence["exit"]["name"] = found.exit.name
    if found.rebooted:
        evidence["rebooted"] = True
    body: dict[str, Any] = {"writer": writer, "status": verdict.status, "reason": verdict.reason, "last": last, "evidence": evidence}
    if found.ended is not None:
        body["ended"] = found.ended
    return body
