"""The ladder: what one process does to stop a run on request (docs/abort.md).

Requests come as files, which the keeper's thread looks for about once a second, and sooner as datagrams. Each is acted on once. The
callback is called in the thread that heard the request, so that a busy script delays it by one switch of threads only. Where it takes
longer than its grace, the keeper has another thread go on without it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from simspool.spool import DamagedSegment, Kind, NewerFormat, control, layout
from simspool.spool.process import this_host
from simspool.spool.segment_header import STATIC_SIZE, SegmentHeader

from . import process_tree
from .listener import Listener, leave_all
from .process_tree import Process
from .recording import Recording, open_recordings

if TYPE_CHECKING:
    from simspool.spool.control import AbortRequest

    from .aborting import Aborting

_ENDS = ("terminate", "all")  # the modes in which the script ends


class _Act:
    """What is done about one request."""

    def __init__(self, request: AbortRequest, mode: str, *, is_member: bool) -> None:
        self.request, self.mode, self.is_member = request, mode, is_member  # a member: aborted with another run of the process
        self.began = time.monotonic()
        self.thread = threading.get_ident()
        self.called = threading.Event()  # the callback is over, or given up
        self.settled = threading.Event()  # all is recorded and stopped that there is to stop
        self.claimed = False

    @property
    def reason(self) -> str:
        """The reason for people: never empty."""
        return self.request.reason or f"aborted by {self.request.by}"


class Ladder:
    """Climbs the ladder for one process's part in one run. `run` gives the callback and the options."""

    def __init__(self, run: Aborting, recording: Recording) -> None:
        self._run, self._recording = run, recording
        self._lock = threading.RLock()  # a signal handler may ask for an abort as well
        self._turn = threading.Lock()
        self._seen: set[str] = set()
        self._listener: Listener | None = None
        self._left = False
        self._act: _Act | None = None

    # ------------------------------------------------------------------ hearing

    def tend(self) -> None:
        """Look for requests, for the agent's address and at a callback that takes too long; about once a second."""
        self._listen()
        folder = self._recording.folder
        if folder is not None:
            for request in control.requests(folder, self._seen):
                self.hear(request)
        act = self._act
        if act is not None and not act.called.is_set() and time.monotonic() - act.began > self._recording.graces.callback:
            self._give_up(act)

    def _listen(self) -> None:
        address, writer, known = self._recording.address, self._recording.writer, self._listener
        if address is None or writer is None:
            return
        path = control.notice_path(address.path, writer.id_text) if address.path else ""
        if known is not None and known.path == path and known.is_well:
            known.resume()
            return
        self._listener = None
        if known is not None:
            known.stop()
        if path:
            listener = Listener(path, self._heard)
            if listener.start():
                self._listener = listener
                if self._left:  # meanwhile, by another thread
                    self.leave()

    def _heard(self, data: bytes) -> None:
        """In the listener's thread: act at once. A datagram that is no request means that the files are worth a look."""
        try:
            request = control.decode_request(data)
        except ValueError:
            self.tend()
            return
        if self._is_new(request):
            self._answer(request)

    def hear(self, request: AbortRequest) -> None:
        """Act on a request in a thread of its own, unless it is known or does not concern this process."""
        if self._is_new(request):
            thread = threading.Thread(target=self._answer, args=(request,), name="simspool-abort", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads: the next second tries again
                self._seen.discard(request.id)

    def _is_new(self, request: AbortRequest) -> bool:
        writer = self._recording.writer
        if writer is None or self._recording.is_closed:
            return False
        with self._lock:
            if request.id in self._seen:
                return False
            self._seen.add(request.id)
        return request.concerns(writer.id_text)

    def forked(self) -> None:
        """In a child that has become a writer of its own: its parent's listener and acts are not its own."""
        leave_all()
        self._lock, self._turn = threading.RLock(), threading.Lock()
        self._listener = self._act = None
        self._left = False

    def leave(self) -> None:
        """Hear no more."""
        self._left = True
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()

    @property
    def is_in_callback(self) -> bool:
        """Whether this is the callback of an abort, called."""
        act = self._act
        return act is not None and act.thread == threading.get_ident() and not act.called.is_set()

    def await_callback(self) -> None:
        """Wait while the callback runs in another thread, at most its grace: what it records belongs to the run."""
        act = self._act
        if act is not None and act.thread != threading.get_ident():
            act.called.wait(max(0.0, act.began + self._recording.graces.callback - time.monotonic()))

    def await_end(self) -> None:
        """Wait, before the run is closed, until what was begun is done; at most as long as the graces add up to."""
        act = self._act
        if act is not None and act.thread != threading.get_ident():
            self.await_callback()
            act.settled.wait(2 * self._recording.graces.term + 1.0)

    # ------------------------------------------------------------------ the ladder

    def _answer(self, request: AbortRequest, is_member: bool = False) -> None:
        run, recording = self._run, self._recording
        mode = "all" if is_member else run._options.get("abort_on_alert", "terminate")  # noqa: SLF001 - the other half of one thing
        act = _Act(request, mode, is_member=is_member)
        own = bool(recording.started)  # they are stopped, then what they wrote is saved
        stops = bool(recording.foreign) + (act.mode in _ENDS or own) + own
        until_done = recording.graces.callback + stops * recording.graces.term
        graces = {"callback": until_done, "term": recording.graces.term}
        recording.record_quietly(Kind.ABORT, {**self._body(act, "received"), "graces": graces})
        with self._lock:
            if self._act is not None and self._act.mode != "ignore":
                return  # it goes down already
            self._act = act
        if act.mode != "ignore":
            run._aborted, recording.abort_reason = True, act.reason  # noqa: SLF001
        run._abort_requested = True  # noqa: SLF001 - last: who sees it and closes the run, finds what to wait for
        if act.mode == "ignore":
            with self._turn:
                self._call_back(act)
                if self._claim(act):
                    self._finish(act)
            return
        self._call_back(act)
        if self._claim(act):
            self._finish(act)

    def _call_back(self, act: _Act) -> None:
        callback = self._run.abort_callback
        if callback is None:
            return
        try:
            callback(self._run)
        except BaseException as error:  # noqa: BLE001 - whatever it is, also an exit: the ladder goes on
            text, summary = self._recording.describe(error)
            self._failed(act, f"abort_callback failed\n{text}", summary)

    def _failed(self, act: _Act, text: str, summary: str) -> None:
        writer = self._recording.writer
        if writer is not None:
            writer.record(Kind.ABORT, {**self._body(act, "callback-failed"), "error": summary})
            writer.record(Kind.EVENT, {"message": text, "level": "error"})

    def _claim(self, act: _Act) -> bool:
        """Say whether the rest is this thread's to do."""
        with self._lock:
            mine, act.claimed = not act.claimed, True
        act.called.set()
        return mine

    def _give_up(self, act: _Act) -> None:
        """Go on without a callback that does not return."""
        if self._claim(act):
            text = f"abort_callback did not return within {self._recording.graces.callback:g} s"
            self._failed(act, text, text)
            threading.Thread(target=self._finish, args=(act,), name="simspool-abort", daemon=True).start()

    def _finish(self, act: _Act) -> None:
        try:
            self._stop(act)
        finally:
            act.settled.set()
        if act.mode in _ENDS and not act.is_member:
            self._end_script(act.reason)

    def _stop(self, act: _Act) -> None:
        writer = self._recording.writer
        assert writer is not None
        if act.mode == "ignore":
            writer.record(Kind.ABORT, self._body(act, "ignored"))
            return
        try:
            left = self._stop_processes(act)
            error = {"error": f"could not stop {', '.join(str(p.pid) for p in left)}"} if left else {}
        except Exception as failure:  # noqa: BLE001 - whatever it is: the run ends truthfully, and the agent stops what is left
            error = {"error": self._recording.describe(failure)[1]}
        writer.record(Kind.STATUS, {"status": "terminated", "reason": act.reason})
        writer.record(Kind.ABORT, {**self._body(act, "done"), **error})
        writer.sync()
        if act.mode == "run":
            self._run._close_aborted(act.reason)  # noqa: SLF001

    def _stop_processes(self, act: _Act) -> tuple[Process, ...]:
        """Stop what the mode means beside the script, and say what could not be stopped."""
        recording, executor = self._recording, self._recording.executor
        term = recording.graces.term
        if executor is not None:
            executor.will_stop(f"the run was aborted: {act.reason}")
        left = process_tree.stop(recording.foreign, term).left
        if act.mode in _ENDS and not act.is_member:
            if act.mode == "all":
                self._take_along(act)
            self._let_recorders_end(act, set(self._children()))
            left += process_tree.stop(self._children(), term).left
        elif started := recording.started:
            self._let_recorders_end(act, {p for root in started for p in (root, *process_tree.descendants(root))})
            left += process_tree.stop(recording.started, term).left
        if executor is not None and executor.pid == os.getpid():
            executor.settle(term)
        return left

    def _take_along(self, act: _Act) -> None:
        """Abort the other runs of this process, each with its callback, and wait until that is done."""
        ladders = [ladder for r in open_recordings() if (ladder := r.make_ladder()) is not None and ladder is not self]
        threads = [ladder.hear_for_another(act.request) for ladder in ladders]
        for thread in threads:
            if thread is not None:
                thread.join(self._recording.graces.callback + self._recording.graces.term)

    def hear_for_another(self, request: AbortRequest) -> threading.Thread | None:
        """Abort this run with another run of the process: all but the end of the script, which is the other one's to bring about."""
        thread = threading.Thread(target=self._answer, args=(request, True), name="simspool-abort", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return None
        return thread

    def _children(self) -> list[Process]:
        """Return what descends from this process, without the agent (a script may be a subreaper) and the keepers of shared memory.

        The latter ignore SIGTERM, and clean up once the script is gone.
        """
        spared = {self._recording.address.pid} if self._recording.address is not None else set()
        for name in ("multiprocessing.resource_tracker", "joblib.externals.loky.backend.resource_tracker", "loky.backend.resource_tracker"):
            tracker = getattr(sys.modules.get(name), "_resource_tracker", None)
            spared.add(getattr(tracker, "_pid", None) or 0)
        me = process_tree.identify(os.getpid())
        return [p for p in process_tree.descendants(me) if p.pid not in spared] if me is not None else []

    def _let_recorders_end(self, act: _Act, children: set[Process]) -> None:
        """Wait for those children that record this run and act on the request themselves: their callbacks are not to be cut short."""
        folder, deadline = self._recording.folder, act.began + self._recording.graces.callback
        if folder is None or not children:
            return
        meant = folder.writer_ids() if act.request.sticky else act.request.writers
        waiting = {w: p for w in meant if (p := _process_of(folder.writer(w))) in children}
        while waiting and time.monotonic() < deadline:
            waiting = {w: p for w, p in waiting.items() if not (process_tree.is_gone(p) or _is_sealed(folder.writer(w)))}
            time.sleep(0.05 if waiting else 0)

    def _end_script(self, reason: str) -> None:
        """SIGTERM, grace, SIGKILL. A script that handles SIGTERM may still record; for one that does not, all is closed first."""
        is_default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if is_default:
            self._close_everything(reason)
            if os.getpid() == 1:  # the first process of a container does not die of signals
                os._exit(128 + signal.SIGTERM)
        else:
            for recording in open_recordings():
                if recording.writer is not None:
                    recording.writer.sync()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self._recording.graces.term)
        self._close_everything(reason)
        process_tree.stop(self._children(), 0.0)
        os.kill(os.getpid(), signal.SIGKILL)
        os._exit(128 + signal.SIGKILL)

    def _close_everything(self, reason: str) -> None:
        self._run._close_aborted(reason)  # noqa: SLF001
        for recording in open_recordings():
            recording.close("terminated", f"the process was aborted with run {self._recording.run_id}: {reason}")

    def _body(self, act: _Act, state: str) -> dict[str, Any]:
        return {"id": act.request.id, "state": state, "mode": act.mode, "by": act.request.by, "reason": act.request.reason}


def _process_of(writer_folder: str) -> Process | None:
    """Return the process of a writer, as its newest segment names it; None when it is not of this host and boot."""
    here = this_host()
    for file in reversed(layout.segments(writer_folder)):
        try:
            with open(file.path, "rb") as f:
                header = SegmentHeader.unpack(f.read(STATIC_SIZE))
        except (OSError, DamagedSegment, NewerFormat):
            continue
        if header.boot_id == here.boot_id and header.pid_namespace == here.pid_namespace:
            return Process(header.pid, header.start_ticks)
        return None
    return None


def _is_sealed(writer_folder: str) -> bool:
    return all(file.sealed for file in layout.segments(writer_folder))
