"""Kills, forks, threads, signal handlers, destructors: nothing that returned True is lost, nothing deadlocks."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

LOOP = """
    import os, sys
    from simspool.sdk import Run
    run = Run(mode="offline")
    run.init("k")
    out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    print("go", flush=True)
    i = 0
    while True:
        if run.log_metrics({"a": i * 0.5, "b": i}, step=i) and (i % 50 or run.log_event(f"e{i}")):
            os.pwrite(out, i.to_bytes(8, "little"), 0)
        i += 1
"""


@pytest.mark.parametrize("segments", ["mapped", "file"])
def test_kill_9_at_a_random_moment_loses_nothing_that_returned_true(
    segments: str, background: Any, found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMSPOOL_SEGMENTS", segments)
    for n in range(4):
        process = background(LOOP, str(tmp_path / "last"))
        assert process.stdout.readline() == "go\n"
        time.sleep(random.uniform(0.01, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        last = int.from_bytes((tmp_path / "last").read_bytes() or b"", "little")
        spool = found()
        steps = [m["step"] for m in spool.of("metrics")]
        assert steps == list(range(len(steps))), n
        assert len(steps) > last, n
        assert len(spool.of("event")) >= last // 50, n
        assert len(spool.damage) <= 1, n  # the frame that the kill hit, whose call never returned
        assert all(d.kind == "torn" for d in spool.damage), n


def test_threads_record_all_their_calls(found: Any) -> None:
    import threading

    from simspool.sdk import Run

    with Run(mode="offline") as run:
        run.init("t")

        def work(n: int) -> None:
            for i in range(500):
                assert run.log_metrics({f"t{n % 3}": float(i)}, step=i)
                if i % 100 == 0:
                    assert run.log_event(f"{n}/{i}")

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    spool = found()
    assert len(spool.of("metrics")) == 3000
    assert len(spool.of("event")) == 30
    assert [r["seq"] for r in spool.records] == list(range(1, len(spool.records) + 1))


def test_a_forked_child_records_for_itself_and_leaves_the_parents_run_open(script: Any, found: Any) -> None:
    done = script("""
        import os, sys
        from simspool.sdk import Run
        run = Run(mode="offline")
        run.init("f")
        run.log_metrics({"parent": 1.0})
        for how in ("exit", "sys", "close", "silent"):
            pid = os.fork()
            if pid == 0:
                if how != "silent":
                    assert run.log_metrics({how: 1.0})
                if how == "exit":
                    os._exit(0)
                if how == "close":
                    assert run.close()
                sys.exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        assert run.log_metrics({"parent": 2.0})
        run.close()
    """)
    assert done.returncode == 0, done.stderr
    spool = found()
    assert sorted(next(iter(m["values"])) for m in spool.of("metrics")) == ["close", "exit", "parent", "parent", "sys"]
    assert [a["reason"] for a in spool.of("attach")] == ["fork"] * 3
    assert len(spool.folder.writer_ids()) == 4
    assert sorted(str(c["status"]) for c in spool.of("close")) == ["None", "None", "completed"]
    assert not spool.damage


def test_a_child_that_leaves_with_by_exit_does_not_end_the_run(script: Any, found: Any) -> None:
    done = script("""
        import os, sys
        from simspool.sdk import Run
        with Run(mode="offline") as run:
            run.init("f")
            pid = os.fork()
            if pid == 0:
                run.log_event("child")
                sys.exit(3)
            os.waitpid(pid, 0)
            assert run.log_event("parent")
    """)
    assert done.returncode == 0, done.stderr
    spool = found()
    assert [c["status"] for c in spool.of("close") if c["writer"] == spool.only("run")["writer"]] == ["completed"]
    assert [c["status"] for c in spool.of("close") if c["writer"] != spool.only("run")["writer"]] == [None]
    assert [e["message"] for e in spool.of("event") if e["writer"] == spool.only("run")["writer"]] == ["parent"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_workers_are_closed_at_their_end(method: str, script: Any, found: Any) -> None:
    done = script(
        """
        import multiprocessing, sys
        from simspool.sdk import Run

        def work(run_id, n):
            with_run = Run.attach(run_id, rank=n, mode="offline")
            for i in range(20):
                assert with_run.log_metrics({"w": float(i)}, step=i)

        def inherited(run, n):
            assert run.log_metrics({"inherited": float(n)})

        if __name__ == "__main__":
            context = multiprocessing.get_context(sys.argv[1])
            with Run(mode="offline") as run:
                run.init("mp")
                workers = [context.Process(target=work, args=(run.id, n)) for n in range(3)]
                if sys.argv[1] == "fork":
                    workers += [context.Process(target=inherited, args=(run, n)) for n in range(2)]
                for w in workers: w.start()
                for w in workers: w.join()
                assert all(w.exitcode == 0 for w in workers)
        """,
        method,
    )
    assert done.returncode == 0, done.stderr
    spool = found()
    assert len(spool.of("metrics")) == 60 + 2 * (method == "fork")
    assert len(spool.of("close")) == len(spool.folder.writer_ids()) == 4 + 2 * (method == "fork")
    assert not spool.damage


def test_a_signal_handler_may_use_every_method_in_the_middle_of_another_call(script: Any, found: Any) -> None:
    done = script("""
        import signal, sys
        from simspool.sdk import Run
        run = Run(mode="offline")
        run.init("s")
        open("f.txt", "w").write("x")
        calls = {"n": 0, "true": 0}

        def handler(*_):
            calls["n"] += 1
            kept = [
                run.log_event("signal"), run.log_metrics({"s": 1.0}), run.update_metadata({"n": calls["n"]}), run.update_tags(["t"]),
            ]
            if calls["n"] % 20 == 1:
                kept += [run.save_file("f.txt", "output"), run.set_status("terminated")]
            calls["true"] += sum(kept)
            if calls["n"] < 200:
                signal.setitimer(signal.ITIMER_REAL, 0.0005)

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
        i = 0
        while calls["n"] < 200:
            assert run.log_metrics({"m": float(i)}, step=i)
            if i % 10 == 0:
                assert run.log_event("main")
            i += 1
        run.close()
        print(i, (i + 9) // 10, calls["true"])
    """)
    assert done.returncode == 0, done.stderr
    main, events, inside = map(int, done.stdout.split())
    spool = found()
    assert len([m for m in spool.of("metrics") if "m" in m["values"]]) == main
    assert len([e for e in spool.of("event") if e["message"] == "main"]) == events
    from_handler = [r for r in spool.records if r["kind"] in {"metadata", "tags", "status", "artifact"}]
    from_handler += [m for m in spool.of("metrics") if "s" in m["values"]] + [e for e in spool.of("event") if e["message"] == "signal"]
    assert len(from_handler) == inside
    assert not spool.damage
    assert not spool.drops


def test_a_destructor_may_record(found: Any) -> None:
    import gc

    from simspool.sdk import Run

    with Run(mode="offline") as run:
        run.init("d")

        class Noisy:
            def __init__(self) -> None:
                self.me = self

            def __del__(self) -> None:
                assert run.log_event("gone")

        for i in range(300):
            Noisy()
            run.log_metrics({"a": float(i)})
        gc.collect()
    assert len(found().of("event")) == 300


def test_a_process_that_cannot_start_the_keeper_records_all_the_same(found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from simspool.sdk import Run, keeper

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(keeper, "_keeper", None)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with Run(mode="offline") as run:
        run.init("n")
        assert run.log_metrics({"a": 1.0})
    assert len(found().of("metrics")) == 1
    monkeypatch.setattr(keeper, "_keeper", None)


def test_the_keeper_is_one_daemon_thread_that_ends_with_the_last_run() -> None:
    import threading

    from simspool.sdk import Run

    def keepers() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name == "simspool-keeper"]

    with Run(mode="offline") as a, Run(mode="offline") as b:
        a.init("a")
        b.init("b")
        assert len(keepers()) == 1
        assert keepers()[0].daemon
    deadline = time.monotonic() + 10
    while keepers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not keepers()


def test_at_the_moment_of_a_fork_there_is_no_keeper_and_afterwards_there_is(script: Any) -> None:
    done = script("""
        import os, threading
        from simspool.sdk import Run
        names = lambda: [t.name for t in threading.enumerate()]
        with Run(mode="offline") as run:
            run.init("f")
            assert "simspool-keeper" in names()
            pid = os.fork()
            if pid == 0:
                alone = len(os.listdir("/proc/self/task")) == 1
                run.log_event("child")
                os._exit(not (alone and "simspool-keeper" in names()))
            assert os.waitpid(pid, 0)[1] == 0
            assert "simspool-keeper" in names()
    """)
    assert done.returncode == 0, done.stderr


def test_records_at_interpreter_shutdown_do_not_fail(script: Any) -> None:
    done = script("""
        import atexit
        from simspool.sdk import Run
        late = Run(mode="offline")
        class Late:
            def __del__(self):
                try:
                    late.log_event("x")
                except RuntimeError:
                    pass
        keep = Late()
        atexit.register(lambda: (late.init("at exit"), late.log_metrics({"a": 1.0}), late.close()))
    """)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
