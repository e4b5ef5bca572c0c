"""How a run ends: with, without, by an exception, by the interpreter's end."""

from __future__ import annotations

from typing import Any

import pytest

from simspool.sdk import Run


def test_an_exception_inside_leaves_traceback_last_points_and_failed_and_is_raised_again(found: Any) -> None:
    with pytest.raises(ZeroDivisionError), Run(mode="offline") as run:  # noqa: PT012 - that is what it tests
        run.init("x")
        run.log_metrics({"a": 1.0})
        run.log_metrics({"a": 1 / 0})
    spool = found()
    assert [m["values"] for m in spool.of("metrics")] == [{"a": 1.0}]
    event = spool.only("event")
    assert event["message"].startswith("Traceback")
    assert "ZeroDivisionError: division by zero" in event["message"]
    assert event["level"] == "error"
    close = spool.only("close")
    assert (close["status"], close["reason"]) == ("failed", "ZeroDivisionError: division by zero")
    assert run.status == "failed"


@pytest.mark.parametrize(
    ("raised", "status"),
    [(KeyboardInterrupt(), "terminated"), (SystemExit(0), "completed"), (SystemExit(None), "completed"), (SystemExit(3), "failed")],
    ids=repr,
)  # fmt: skip
def test_interrupts_and_exits_get_the_status_that_they_mean(raised: BaseException, status: str, found: Any) -> None:
    with pytest.raises(type(raised)), Run(mode="offline") as run:  # noqa: PT012 - that is what it tests
        run.init("x")
        raise raised
    assert found().only("close")["status"] == status


def test_a_status_that_was_set_is_kept(found: Any) -> None:
    with Run(mode="offline") as run:
        run.init("x")
        assert run.set_status("terminated") is True
    spool = found()
    assert spool.only("status")["status"] == "terminated"
    assert spool.only("close")["status"] == "terminated"


@pytest.mark.parametrize(
    ("ending", "status", "rc"),
    [
        ("", "completed", 0),
        ("import sys; sys.exit(0)", "completed", 0),
        ("raise ValueError('boom')", "failed", 1),
        ("raise KeyboardInterrupt", "terminated", -2),
        ("run.set_status('failed')", "failed", 0),
    ],
)
def test_a_script_that_never_closes_ends_truthfully_and_with_its_own_exit_code(
    ending: str, status: str, rc: int, script: Any, found: Any
) -> None:
    done = script(f"""
        from simspool.sdk import Run
        run = Run(mode="offline")
        run.init("x")
        run.log_metrics({{"a": 1.0}})
        {ending}
    """)
    assert done.returncode == rc, done.stderr
    spool = found()
    assert spool.only("close")["status"] == status
    assert [bool(e["message"].startswith("Traceback")) for e in spool.of("event")] == [True] * (rc != 0)
    assert not spool.damage


def test_an_interrupt_shows_in_the_exit_code_also_where_it_takes_long_to_report(script: Any, found: Any) -> None:
    # the keeper imports the sampler meanwhile, which makes the interpreter forget
    done = script("""
        import sys, time
        from simspool.sdk import Run
        run = Run(mode="offline")
        run.init("x")
        run.log_metrics({"a": 1.0})
        sys.excepthook = lambda *_: time.sleep(2.5)
        raise KeyboardInterrupt
    """)
    assert done.returncode == -2, done.stderr
    assert found().only("close")["status"] == "terminated"


def test_close_says_how_to_sync_only_online(script: Any, found: Any) -> None:
    text = """
        import sys
        from simspool.sdk import Run
        with Run(mode=sys.argv[1]) as run:
            run.init("x")
    """
    assert script(text, "offline").stderr == ""
    online = script(text, "online").stderr
    run_id = found().run_id
    assert online.count("\n") == 1
    assert f"`agent sync {run_id}`" in online


def test_a_closed_stderr_does_not_matter(script: Any, found: Any) -> None:
    done = script("""
        import os, sys
        from simspool.sdk import Run
        sys.stderr.close()
        with Run() as run:
            run.init("x")
    """)
    assert done.returncode == 0
    assert found().only("close")["status"] == "completed"
