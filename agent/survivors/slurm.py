"""What Slurm says of a job: asked of its own commands, in a thread, with time limits, and only when a process of that job died.

`scontrol` knows a job for some minutes after its end (MinJobAge), `sacct` where accounting is on, the jobcomp file where one is written.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

_COMMAND = 10.0  # s that one command may take
_AGAIN = 0.5  # s between two looks at a job that is about to end
_RUNNING, _COMPLETING = 3.0, 90.0  # s: how long an end is waited for; jobs have KillWait (30 s) to end
_SILENT = 60.0  # s that a controller that did not answer is left alone
_FRESH = 15.0  # s that "it runs" is believed
_TAIL = 16 << 20  # bytes of a jobcomp file
_REMEMBERED = 1000  # jobs
_SLACK = 300.0  # s: clocks of the controller and of this host

# What Slurm did to the job: state -> (status of the run, words for the reason)
ENDS = {
    "CANCELLED": ("terminated", "was cancelled"),
    "TIMEOUT": ("terminated", "reached its time limit"),
    "DEADLINE": ("terminated", "reached its deadline"),
    "PREEMPTED": ("terminated", "was preempted"),
    "NODE_FAIL": ("terminated", "lost its node"),
    "BOOT_FAIL": ("terminated", "lost its node"),
    "REQUEUED": ("terminated", "was put back into the queue"),
    "OUT_OF_MEMORY": ("failed", "ran out of memory"),
}
_GOING_ON = frozenset({"RUNNING", "CONFIGURING", "SUSPENDED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"})
_WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"})
_ENDED = frozenset({"COMPLETED", "FAILED"})
_ID = re.compile(r"[0-9]{1,10}\Z")


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its process knew it. `restarts`: how often it had been requeued; `seen`: wall time (s) of the process's last record.

    `is_run`: Slurm itself ran the process, and ends it with the job.
    """

    id: str
    array: str | None = None
    restarts: int = 0
    seen: float = 0.0
    is_run: bool = False

    @classmethod
    def of_record(cls, body: Mapping[str, Any] | None, seen: float) -> Job | None:
        """Return the job in what the SDK noted (`{"job", "array"?, "restarts"?}`), None when there is none."""
        noted = (body or {}).get("slurm")
        if not isinstance(noted, dict) or not _is_id(noted.get("job")):
            return None
        array, restarts = noted.get("array"), noted.get("restarts")
        parts = array.split("_") if isinstance(array, str) else []
        whole = len(parts) == 2 and all(map(_is_id, parts))
        return cls(noted["job"], array if whole else None, restarts if isinstance(restarts, int) else 0, seen, bool(noted.get("node")))

    @property
    def name(self) -> str:
        """What Slurm's commands take: an element of an array by its place, for its own number may stand for all of them."""
        return self.array or self.id


def _is_id(value: object) -> bool:
    return isinstance(value, str) and _ID.match(value) is not None


@dataclass(frozen=True, slots=True)
class JobState:
    """What Slurm says: `state` as it prints it, or REQUEUED for one that waits for another start. `problem`: why it says nothing."""

    job: str
    state: str = ""
    source: str = ""
    reason: str = ""
    exit_code: str = ""
    problem: str = ""

    @property
    def is_end(self) -> bool:
        """Whether Slurm ended the job."""
        return self.state in ENDS

    @property
    def is_over(self) -> bool:
        """Whether its processes are gone, whoever ended them: Slurm kills what is left of a job."""
        return self.is_end or self.state in _ENDED

    def as_dict(self) -> dict[str, Any]:
        """Return it as evidence."""
        parts = (("job", self.job), ("state", self.state), ("source", self.source), ("why", self.reason), ("exit", self.exit_code))
        return {k: v for k, v in (*parts, ("problem", self.problem)) if v}


@dataclass(slots=True)
class _Inquiry:
    job: Job
    began: float
    then: list[Callable[[], None]] = field(default_factory=list)
    answer: JobState | None = None
    at: float = 0.0
    done: threading.Event = field(default_factory=threading.Event)


class Slurm:
    """Asks about jobs, one command at a time, each job once. Safe to use from several threads.

    What is final is remembered; that a job still runs is believed for some seconds.
    """

    def __init__(self, *, run: Callable[[list[str]], str] | None = None) -> None:
        self._command = run or run_command
        self._lock = threading.Lock()
        self._inquiries: dict[Job, _Inquiry] = {}
        self._waiting: list[_Inquiry] = []
        self._thread: threading.Thread | None = None
        self._silent_until = 0.0
        self._completions: str | None = None

    def ask(self, job: Job, then: Callable[[], None]) -> JobState | None:
        """Return what Slurm says; None while it is being asked: `then` is called, in another thread, when it is known."""
        with self._lock:
            inquiry = self._inquiries.get(_key(job))
            now = time.monotonic()
            if inquiry is not None and inquiry.done.is_set() and (_lasts(inquiry.answer) or now - inquiry.at < _FRESH):
                return inquiry.answer
            if len(self._inquiries) > _REMEMBERED:
                self._inquiries = {k: i for k, i in self._inquiries.items() if not i.done.is_set()}
            if inquiry is None or inquiry.done.is_set():
                inquiry = _Inquiry(job, now)
                self._inquiries[_key(job)] = inquiry
                self._waiting.append(inquiry)
            inquiry.then.append(then)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="simspool-slurm", daemon=True)
                self._thread.start()
        return None

    def ask_once(self, job: Job) -> JobState:
        """Return what Slurm says, waiting for its commands, and for a job that is completing up to 10 s."""
        deadline = time.monotonic() + 10.0
        while True:
            known = self._inquiries.get(_key(job))
            if known is not None and known.answer is not None and _lasts(known.answer):
                return known.answer
            answer = self._look(job)
            if answer.state != "COMPLETING" or time.monotonic() >= deadline:
                inquiry = _Inquiry(job, 0.0, answer=answer, at=time.monotonic())
                inquiry.done.set()
                self._inquiries[_key(job)] = inquiry
                return answer
            time.sleep(_AGAIN)

    def _work(self) -> None:
        """Go round the jobs that are asked about, until none is left."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                turn = list(self._waiting)
            began = time.monotonic()
            for inquiry in turn:
                answer = self._look(inquiry.job)
                patience = {"COMPLETING": _COMPLETING}.get(answer.state, _RUNNING if answer.state in _GOING_ON else 0.0)
                now = time.monotonic()
                if now - inquiry.began >= patience:
                    with self._lock:
                        inquiry.answer, inquiry.at = answer, now
                        inquiry.done.set()
                        self._waiting.remove(inquiry)
                        waiters, inquiry.then = inquiry.then, []
                    for then in waiters:
                        then()
            time.sleep(max(0.0, _AGAIN - (time.monotonic() - began)))

    # ------------------------------------------------------------------ the commands

    def _look(self, job: Job) -> JobState:
        """Ask scontrol, then sacct, then the jobcomp file."""
        if time.monotonic() < self._silent_until:
            return JobState(job.name, problem="Slurm did not answer a moment ago")
        problem = ""
        for source, look in (("scontrol", self._by_scontrol), ("sacct", self._by_sacct), ("jobcomp", self._by_jobcomp)):
            try:
                found = look(job)
            except subprocess.TimeoutExpired:
                self._silent_until = time.monotonic() + _SILENT
                return JobState(job.name, problem=f"{source} did not answer within {_COMMAND:.0f} s")
            except (OSError, subprocess.CalledProcessError) as error:
                problem = problem or f"{source}: {_message(error)}"
                continue
            if found is not None:
                return found
        return JobState(job.name, problem=problem or "Slurm does not know this job")

    def _by_scontrol(self, job: Job) -> JobState | None:
        return parse_scontrol(self._command(["scontrol", "show", "job", job.name]), job)

    def _by_sacct(self, job: Job) -> JobState | None:
        columns = "JobIDRaw,State,ExitCode,Start,End"
        return parse_sacct(self._command(["sacct", "-X", "-P", "-n", "-D", "-j", job.name, "-o", columns]), job)

    def _by_jobcomp(self, job: Job) -> JobState | None:
        if self._completions is None:
            found = dict(line.split("=", 1) for line in self._command(["scontrol", "show", "config"]).splitlines() if "=" in line)
            values = {k.strip(): v.strip() for k, v in found.items()}
            self._completions = values.get("JobCompLoc", "") if values.get("JobCompType") == "jobcomp/filetxt" else ""
        if not self._completions:
            return None
        with open(self._completions, "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - _TAIL))
            return parse_completions(f.read().decode(errors="replace"), job)


def _key(job: Job) -> Job:
    return Job(job.id, job.array, job.restarts)


def _lasts(answer: JobState | None) -> bool:
    return answer is not None and bool(answer.state) and answer.state not in _GOING_ON and answer.state != "COMPLETING"


def run_command(command: list[str]) -> str:
    """Return what a command prints. Raises OSError, subprocess.TimeoutExpired and CalledProcessError."""
    # times as seconds since 1970: no time zone to be guessed
    environment = {**os.environ, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND, env=environment, cwd="/", check=True, text=True,
        errors="replace",
    )  # fmt: skip
    return done.stdout


def _message(error: OSError | subprocess.CalledProcessError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error.stderr or "").strip()[:200] or f"exit code {error.returncode}"


def _is_ours(job: Job, start: float | None, end: float | None) -> bool:
    """Whether a job of this number can be that of the process: numbers begin anew when a cluster is set up again."""
    if not job.seen:
        return True
    return (start is None or start <= job.seen + _SLACK) and (end is None or end >= job.seen - _SLACK)


def _moment(text: str) -> float | None:
    if text.isdigit():
        return float(text)
    try:
        return datetime.fromisoformat(text).timestamp()  # the host's zone: an old Slurm, or its own file
    except ValueError:
        return None


def parse_scontrol(text: str, job: Job) -> JobState | None:
    """Read the output of `scontrol show job`: None when it is not about the job."""
    for block in re.split(r"\n\s*\n", text):
        states = re.search(r"^\s+JobState=(\S+) Reason=(\S*)", block, re.MULTILINE)
        if states is None:
            continue
        values = dict(re.findall(r"(?<!\S)(Restarts|ExitCode|StartTime|EndTime)=(\S+)", block[states.end() :]))
        state, reason = states[1], "" if states[2] == "None" else states[2]
        restarts = int(values.get("Restarts", "0"))
        if restarts > job.restarts or state in _WAITING:
            state = "REQUEUED"
        else:
            start = _moment(values.get("StartTime", ""))
            end = None if state in _GOING_ON else _moment(values.get("EndTime", ""))
            if not _is_ours(job, start, end):
                continue
        return JobState(job.name, state, "scontrol", reason, values.get("ExitCode", ""))
    return None


def parse_sacct(text: str, job: Job) -> JobState | None:
    """Read the output of sacct: the line of the start (a requeued job has several) that the process was in."""
    found = None
    for line in text.splitlines():
        _, state, code, start, end = [*line.split("|"), "", "", "", "", ""][:5]
        if state and _is_ours(job, _moment(start), _moment(end)):
            found = JobState(job.name, state.split()[0], "sacct", state.partition(" ")[2], code)
            if found.is_end:
                break
    return found


def parse_completions(text: str, job: Job) -> JobState | None:
    """Read a jobcomp/filetxt file: the last line of the job."""
    for line in reversed(text.splitlines()):
        if not line.startswith(f"JobId={job.id} "):
            continue
        values = dict(re.findall(r"(?<!\S)(JobState|StartTime|EndTime|ExitCode)=(\S+)", line))
        if "JobState" in values and _is_ours(job, _moment(values.get("StartTime", "")), _moment(values.get("EndTime", ""))):
            return JobState(job.name, values["JobState"], "jobcomp", "", values.get("ExitCode", ""))
    return None
