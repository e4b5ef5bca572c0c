"""Run: what it records, what it returns, what it refuses."""

from __future__ import annotations

import enum
import inspect
import logging
import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simspool.sdk import Handler, InvalidRecord, NotInitialised, Run, RunClosed, RunNotFound, SdkError
from simspool.spool import open_spool


def test_signatures_are_those_of_the_seed() -> None:
    expected = {
        "__init__": ["mode", "abort_callback", "server_token", "server_url", "debug"],
        "init": ["name", "metadata", "tags", "description", "folder", "running", "retention_period", "timeout", "visibility", "no_color"],
        "log_metrics": ["metrics", "step", "time", "timestamp"],
        "log_event": ["message", "timestamp"],
        "save_file": ["file_path", "category", "filetype", "preserve_path", "name"],
        "save_directory": ["directory", "category", "filetype", "preserve_path"],
        "save_all": ["items", "category", "filetype", "preserve_path"],
        "save_object": ["obj", "category", "name", "allow_pickle"],
        "set_folder_details": ["path", "metadata", "tags", "description"],
        "update_metadata": ["metadata"], "set_tags": ["tags"], "update_tags": ["tags"], "set_status": ["status"],
        "reconnect": ["run_id"], "close": [],
    }  # fmt: skip
    for method, names in expected.items():
        assert list(inspect.signature(getattr(Run, method)).parameters)[1 : len(names) + 1] == names
    options = set(inspect.signature(Run.config).parameters)
    assert options >= {
        "suppress_errors", "queue_blocking", "resources_metrics_interval", "enable_emission_metrics", "disable_resources_metrics",
        "storage_id", "abort_on_alert", "system_metrics_interval",
    }  # fmt: skip
    assert inspect.signature(Run.init).parameters["timeout"].default is None


def test_the_first_record_says_what_the_run_is(found: Any) -> None:
    run = Run(mode="offline")
    assert run.init(
        "my run/1", {"a": 1, "b": 2.5, "c": "x", "d": True, "e": np.float32(0.5), "f": {"g": [1, None]}}, ["t1", "t2", "t1"], "what it is",
        folder="/project/a", retention_period="2 weeks 3 hours", timeout=30, visibility=["ann"],
    )  # fmt: skip
    assert run.close() is True
    record = found().only("run")
    assert record["seq"] == 1
    assert {k: record[k] for k in ("name", "tags", "description", "folder", "status", "retention", "timeout", "visibility")} == {
        "name": "my run/1", "tags": ["t1", "t2"], "description": "what it is", "folder": "/project/a", "status": "running",
        "retention": 14 * 86400 + 3 * 3600, "timeout": 30, "visibility": ["ann"],
    }  # fmt: skip
    assert record["metadata"] == {"a": 1, "b": 2.5, "c": "x", "d": True, "e": 0.5, "f": {"g": [1, None]}}
    assert record["system"]["hostname"]
    assert record["system"]["python"]["packages"]["numpy"] == np.__version__
    info = found().folder.info()
    assert info["id"] == run.id
    assert info["name"] == "my run/1"
    assert set(info["origin"]) == {"wall", "boot", "boot_id"}


def test_a_name_is_made_up_where_none_is_given() -> None:
    names = set()
    for _ in range(5):
        with Run(mode="offline") as run:
            run.init()
            assert re.fullmatch(r"[a-z]+-[a-z]+-\d{4}", str(run.name))
            names.add(run.name)
    assert len(names) > 1


def test_metrics_of_every_sort_come_back_as_they_were(found: Any) -> None:
    class Level(enum.IntEnum):
        LOW = 3

    with Run(mode="offline") as run:
        run.init("m")
        assert run.log_metrics({"f": 0.1, "i": 7, "b": True, "nan": math.nan, "inf": -math.inf}) is True
        scalars = {"np": np.float64(0.25), "n32": np.float32(0.5), "n8": np.int8(-3), "nb": np.bool_(True), "zero": np.array(2.0)}
        assert run.log_metrics(scalars) is True
        assert run.log_metrics({"big": 1 << 80, "enum": Level.LOW}, step=9, time=1.5) is True
        assert run.log_metrics({"f": 1.0}, timestamp="2026-01-31T12:00:00.000001") is True
        assert run.log_metrics({"f": 2.0}, timestamp=datetime(2026, 1, 31, 12, tzinfo=UTC)) is True
        assert run.log_metrics({"f": 3.0}, timestamp="2026-01-31T12:00:00+01:00") is True
    first, second, big, stamped, moment, text = found().of("metrics")
    assert {k: v for k, v in first["values"].items() if k != "nan"} == {"f": 0.1, "i": 7, "b": True, "inf": -math.inf}
    assert math.isnan(first["values"]["nan"])
    assert type(first["values"]["b"]) is bool
    assert second["values"] == {"np": 0.25, "n32": 0.5, "n8": -3, "nb": True, "zero": 2.0}
    assert big["values"] == {"big": 1 << 80, "enum": 3}
    assert (big["step"], big["time"]) == (9, 1.5)
    assert stamped["stamp"] == 1769860800000001
    assert moment["stamp"] == 1769860800000000
    assert text["timestamp"] == "2026-01-31T12:00:00+01:00"


@pytest.mark.parametrize(
    "bad",
    [
        {"a*": 1}, {"": 1}, {"a\n\x1b": 1}, {"a": "1"}, {"a": None}, {"a": 1j}, {"a": np.zeros(2)}, {"a": [1]}, {}, [("a", 1)], None,
        {1: 2}, {"x" * 2000: 1},
    ],
    ids=repr,
)  # fmt: skip
def test_bad_metrics_raise_and_record_nothing(bad: Any, found: Any) -> None:
    with Run(mode="offline") as run:
        run.init("m")
        with pytest.raises(InvalidRecord):
            run.log_metrics(bad)
        for extra in ({"step": -1}, {"step": 1.5}, {"time": "x"}, {"timestamp": "yesterday"}, {"timestamp": 5}):
            with pytest.raises(InvalidRecord):
                run.log_metrics({"ok": 1.0}, **extra)  # type: ignore[arg-type]
        assert run.log_metrics({"ok (%) + a=b<c>/d:e.f-g": 1.0}) is True
    assert len(found().of("metrics")) == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "a*b"}, {"name": ""}, {"name": 3}, {"folder": "a"}, {"metadata": [1]}, {"metadata": {1: 2}},
        {"metadata": {"a": frozenset()}},
        {"metadata": {"": 1}}, {"tags": "abc"}, {"tags": [1]}, {"tags": 5}, {"description": 5}, {"retention_period": "soon"},
        {"retention_period": "1 day and then some"}, {"timeout": 0}, {"timeout": True}, {"visibility": "all"}, {"visibility": [1]},
        {"notification": "loud"},
    ],
    ids=repr,
)  # fmt: skip
def test_bad_arguments_of_init_raise_and_make_no_run(bad: dict[str, Any], spool_dir: Path) -> None:
    with pytest.raises(InvalidRecord):
        Run(mode="offline").init(**bad)
    assert not spool_dir.exists() or not open_spool(spool_dir).run_ids()


def test_metadata_merges_and_tags_add_up(found: Any) -> None:
    with Run(mode="offline") as run:
        run.init("m", metadata={"a": 1}, tags=["x"])
        assert run.update_metadata({"a": 2, "b": np.int64(3)})
        assert run.update_tags(["x", "y"])
        assert run.set_tags(["z"])
        assert run.set_folder_details("/a/b", {"k": 1}, ["t"], "d")
        assert run.set_folder_details({"k": 2}, description="mine")
        mistakes = (lambda: run.update_metadata({"a": object()}), lambda: run.set_tags("x"), lambda: run.set_folder_details("a"))
        for call in mistakes:
            with pytest.raises(InvalidRecord):
                call()
    spool = found()
    assert spool.only("metadata")["set"] == {"a": 2, "b": 3}
    assert [(t["op"], t["tags"]) for t in spool.of("tags")] == [("add", ["x", "y"]), ("set", ["z"])]
    assert [{k: f[k] for k in f if k in {"path", "metadata", "tags", "description"}} for f in spool.of("folder")] == [
        {"path": "/a/b", "metadata": {"k": 1}, "tags": ["t"], "description": "d"},
        {"path": "/", "metadata": {"k": 2}, "description": "mine"},
    ]  # fmt: skip


def test_config_stores_every_key_in_the_seeds_spelling(found: Any) -> None:
    run = Run(mode="offline")
    assert run.config(system_metrics_interval=5, storage_id="s")
    run.init("c")
    assert run.config(queue_blocking=True, enable_emission_metrics=False, disable_resources_metrics=True)
    assert run.config(abort_on_alert=True, suppress_errors=False)
    assert run.config(abort_on_alert="terminate")
    for bad in ({"resources_metrics_interval": 0}, {"abort_on_alert": "sometimes"}, {"queue_blocking": 1}, {"storage_id": 5}):
        with pytest.raises(InvalidRecord):
            run.config(**bad)
    run.close()
    stored: dict[str, Any] = {}
    for record in found().of("config"):
        stored |= record["set"]
    assert stored == {
        "resources_metrics_interval": 5, "storage_id": "s", "queue_blocking": True, "enable_emission_metrics": False,
        "disable_resources_metrics": True, "abort_on_alert": "terminate", "suppress_errors": False,
    }  # fmt: skip


def test_disabled_has_no_effect_and_answers_as_on_success(spool_dir: Path) -> None:
    with Run(mode="disabled") as run:
        assert run.init("x") is True
        assert run.log_metrics({"a": 1}) is True
        assert run.log_event("e") is True
        assert run.save_file(__file__, "code") is True
        assert run.save_directory(".", "code") is True
        assert run.save_object(object(), "output") is True
        assert run.update_metadata({"a": 1}) is True
        assert run.set_status("failed") is True
        assert run.config(storage_id="x") is True
        assert run.name == "x"
        assert run.id
        assert run.duration >= 0
        assert run.processes == []
        assert run.executor.success
    assert run.close() is True
    assert not spool_dir.exists()


def test_calls_before_init_and_after_close_raise() -> None:
    run = Run(mode="offline")
    assert (run.id, run.name, run.uid, run.status, run.duration) == (None, None, None, None, 0.0)
    for call in (lambda: run.log_metrics({"a": 1}), lambda: run.log_event("x"), lambda: run.save_object({}, "output"), run.close):
        with pytest.raises(NotInitialised, match="call init first"):
            call()
    run.init("x")
    with pytest.raises(SdkError, match="another Run"):
        run.init("y")
    assert run.close()
    assert run.close()
    for call in (lambda: run.log_metrics({"a": 1}), lambda: run.log_event("x"), lambda: run.save_file(__file__, "code")):
        with pytest.raises(RunClosed, match="reconnect"):
            call()


def test_suppressed_errors_make_the_run_dormant(found: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(mode="offline")
    run.config(suppress_errors=True)
    run.init("x")
    assert run.log_metrics({"a": 1.0}) is True
    assert run.log_metrics({"a": "no"}) is False
    assert run.log_metrics({"a": 1.0}) is False
    assert run.log_event("x") is False
    assert run.save_file("missing", "input") is False
    assert run.close() is True
    assert capsys.readouterr().err.count("errors are suppressed") == 1
    spool = found()
    assert len(spool.of("metrics")) == 1
    assert "dormant" in spool.only("event")["message"]
    assert spool.only("close")["status"] == "lost"


def test_properties() -> None:
    with Run(mode="offline") as run:
        run.init("p")
        assert run.uid == run.id
        assert len(str(run.id)) == 22
        assert run.status == "running"
        assert 0 < run.duration < 60
        moment = datetime.strptime(run.time_stamp, "%Y-%m-%dT%H:%M:%S.%f").replace(tzinfo=UTC)
        assert abs((datetime.now(UTC) - moment).total_seconds()) < 5
        assert run.mode == "offline"
    assert run.status == "completed"


def test_events_keep_their_time_and_level(found: Any) -> None:
    with Run(mode="offline") as run:
        run.init("e")
        assert run.log_event("plain")
        assert run.log_event("ünï\ud800 \x1b[31m", timestamp="2026-01-31T12:00:00.000000", log_level="warning")
        with pytest.raises(InvalidRecord):
            run.log_event(5)  # type: ignore[arg-type]
        with pytest.raises(InvalidRecord):
            run.log_event("x", log_level="loud")  # type: ignore[arg-type]
        with pytest.raises(InvalidRecord, match="file instead"):
            run.log_event("x" * (1 << 21))
    first, second = found().of("event")
    assert "timestamp" not in first
    assert (second["message"], second["timestamp"], second["level"]) == ("ünï\ud800 \x1b[31m", 1769860800000000, "warning")


def test_a_created_run_is_reconnected_to(found: Any, spool_dir: Path) -> None:
    with Run(mode="offline") as run:
        run.init("later", running=False)
        assert run.status == "created"
    again = Run(mode="offline")
    assert again.reconnect(str(run.id))
    assert (again.id, again.name, again.status) == (run.id, "later", "running")
    assert again.log_metrics({"a": 1.0})
    again.close()
    spool = found(run.id)
    assert [r["reason"] for r in spool.of("attach")] == ["reconnect"]
    assert [r["status"] for r in spool.of("close")] == [None, "completed"]
    with pytest.raises(RunNotFound, match="agent ls"):
        Run(mode="offline").reconnect("nobody")


def test_attach_records_into_anothers_run(found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run(mode="offline") as run:
        run.init("main")
        monkeypatch.setenv("SIMSPOOL_RUN", str(run.id))
        monkeypatch.setenv("SLURM_PROCID", "3")
        with Run.attach() as rank:
            assert rank.id == run.id
            rank.log_metrics({"r": 3.0})
        with Run.attach("main", rank=4) as other:
            other.log_event("four")
        run.log_metrics({"m": 1.0})
    spool = found(run.id)
    assert [(r["reason"], r["rank"]) for r in spool.of("attach")] == [("attach", 3), ("attach", 4)]
    assert len({r["writer"] for r in spool.records}) == 3
    monkeypatch.delenv("SIMSPOOL_RUN")
    with pytest.raises(NotInitialised, match="SIMSPOOL_RUN"):
        Run.attach()


def test_logging_handler_records_messages_but_not_our_own(found: Any) -> None:
    logger = logging.getLogger("user.model")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    with Run(mode="offline") as run:
        run.init("h")
        handler = Handler(run)
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logger.addHandler(handler)
        own = logging.getLogger("simspool.agent")
        own.addHandler(handler)
        try:
            logger.warning("careful %d", 7)
            logger.debug("detail")
            own.error("not this")
        finally:
            own.removeHandler(handler)
    logger.info("after the end")
    logger.removeHandler(handler)
    heard = [(e["message"], e["level"]) for e in found().of("event")]
    assert heard == [("user.model: careful 7", "warning"), ("user.model: detail", "debug")]


def test_shell_variables_are_kept_only_when_named(found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SETTING", "on")
    monkeypatch.setenv("MY_TOKEN_CANARY", "s3cr3t-canary")
    with Run(mode="offline", server_token="t0ken-canary", server_url="http://localhost:1") as run:
        run.init("s", record_shell_vars={"MY_SET*"})
    spool = found()
    assert spool.only("run")["metadata"] == {"shell.MY_SETTING": "on"}
    everything = b"".join(p.read_bytes() for p in Path(spool.spool.path).rglob("*") if p.is_file())
    assert b"canary" not in everything


def test_a_spool_of_another_owner_format_or_purpose_raises_at_init(spool_dir: Path) -> None:
    from simspool.sdk import InvalidSpool, NewerFormat

    spool_dir.mkdir()
    (spool_dir / "other.txt").write_text("x")
    with pytest.raises(InvalidSpool, match="SIMSPOOL_DIR"):
        Run(mode="offline").init("x")
    (spool_dir / "other.txt").unlink()
    (spool_dir / "SPOOL").write_text('{"format": [2, 0], "id": "0000000000000000000000"}')
    with pytest.raises(NewerFormat, match="upgrade"):
        Run(mode="offline").init("x")
    quiet = Run(mode="offline")
    quiet.config(suppress_errors=True)
    assert quiet.init("x") is False
    assert quiet.log_metrics({"a": 1}) is False
    assert sorted(p.name for p in spool_dir.iterdir()) == ["SPOOL"]
