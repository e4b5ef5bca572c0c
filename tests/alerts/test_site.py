"""A site's file of alerts: which runs it means, what is wrong with it, and that a running agent takes changes over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simspool.agent.alerts.site import InvalidSiteFile, SiteFile, load, matching, parse_where
from simspool.sdk import Client, Run
from simspool.spool import Kind, runstate

GUARD = '[[alerts]]\nname = "nan"\nmetric = "loss*"\nrule = "is not finite"\n'


def state(name: str = "orbit-7", folder: str = "/a/b", tags: tuple[str, ...] = ("prod", "x"), **metadata: Any) -> dict[str, Any]:
    out = runstate.empty()
    body = {"name": name, "folder": folder, "tags": list(tags), "metadata": metadata}
    runstate.apply(out, "w", 1, Kind.RUN, 1, body)
    return out


@pytest.mark.parametrize(
    ("where", "meant"),
    [
        ("", True), ("folder=/a", True), ("folder=/a/b/", True), ("folder=/", True), ("folder=/a/bb", False), ("folder=/b", False),
        ("tag=prod", True), ("tag=prod tag=x", True), ("tag=prod tag=y", False), ("name=orbit-*", True), ("name=orbit-[0-6]", False),
        ("name=* name=*7", True), ("metadata.n=3", True), ("metadata.n=4", False), ('metadata.text="two words"', True),
        ("metadata.none=3", False), ("folder=/a tag=x name=o* metadata.n=3", True), ("folder=/a tag=x name=p*", False),
    ],
)  # fmt: skip
def test_which_runs_a_filter_means(where: str, meant: bool) -> None:
    assert parse_where(where).matches(state(n=3, text="two words")) is meant


@pytest.mark.parametrize("where", ["folder", "folder=", "folder=x", "folder=/a folder=/b", "status=up", "metadata.=1", 'name="x', "=x"])
def test_what_is_no_filter_is_refused(where: str) -> None:
    with pytest.raises(ValueError):
        parse_where(where)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("alerts = 3", "[[alerts]]"), ("[[rules]]\nname = 'x'", "'rules'"), ("[[alerts]]\nname = ", "TOML"),
        ("[[alerts]]\nrule = 'is above'", "alert 1: alert name"), (GUARD + "treshold = 3", "alert 1 ('nan'): there is no key 'treshold'"),
        (GUARD + "threshold = 3", "no use for threshold"), (GUARD + "abort = 'yes'", "abort must be true or false"),
        (GUARD + "where = 'colour=red'", "where: there is no 'colour'"), (GUARD + "where = ['x']", "where must be text"),
        (GUARD + GUARD.replace("is not finite", "is high"), "alert 2 ('nan'): alert 'nan': rule must be one of"),
        ("[[alerts]]\nname = 'u'\nsource = 'user'", "for scripts"), ("[[alerts]]\nname = 'e'\npattern = 're:(a)\\1'", "back reference"),
        ("[[alerts]]\nname = 'e'\npattern = 3", "pattern must be text"), (GUARD + "hold = true", "hold"), ("x" * (1 << 20) + "x", "MiB"),
        ("\xff", "TOML"),
    ],
    ids=lambda v: str(v)[:40],
)  # fmt: skip
def test_what_is_wrong_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "alerts.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidSiteFile) as error:
        load(str(path))
    assert str(path) in str(error.value)
    assert says in str(error.value)
    with pytest.raises(InvalidSiteFile, match="cannot be read"):
        load(str(tmp_path / "none"))


def test_the_bodies_for_a_run_and_the_first_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "alerts.toml"
    first = '[[alerts]]\nname = "high"\nmetric = "t"\nrule = "is above"\nthreshold = 5\nabort = true\nwhere = "folder=/a"\n'
    path.write_text(first + first.replace("5", "9").replace("/a", "/") + "[[alerts]]\nname = 'e'\npattern = 'ERROR'\n")
    found = load(str(path))
    high, event = matching(found, state())
    assert (high["by"], high["since"], high["abort"], high["alert"]["threshold"]) == ("site", 0.0, True, 5.0)
    assert (event["source"], event["alert"]) == ("events", {"pattern": "ERROR"})
    assert [b["alert"].get("threshold") for b in matching(found, state(folder="/b"))] == [9.0, None]


def test_a_changed_file_is_read_again_and_a_broken_one_leaves_the_rules(tmp_path: Path) -> None:
    path, said = tmp_path / "alerts.toml", list[str]()
    path.write_text(GUARD)
    site = SiteFile(str(path), said.append)
    assert ([a.body["name"] for a in site(state())], site.refresh(), said) == (["nan"], False, [])
    path.write_text(GUARD + "threshold = 'x'")
    assert (site.refresh(), len(site), site.refresh()) == (False, 1, False)
    assert len(said) == 1
    assert "stay as they were" in said[0]
    path.write_text(GUARD + GUARD.replace("nan", "inf"))
    assert (site.refresh(), len(site), site.problem) == (True, 2, "")
    site.read_again()
    assert site.refresh() is False  # read, and the same
    path.unlink()
    assert (site.refresh(), len(site)) == (False, 2)


def test_lenient_begins_without_rules_where_strict_refuses(tmp_path: Path) -> None:
    path, said = tmp_path / "alerts.toml", list[str]()
    with pytest.raises(InvalidSiteFile):
        SiteFile(str(path))
    site = SiteFile(str(path), said.append, lenient=True)
    path.write_text(GUARD)
    assert (site(state()), site.refresh(), len(site)) == ([], True, 1)


# ---------------------------------------------------------------------- a running agent


def until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """Wait for something that a running agent does."""
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_a_running_agent_applies_the_file_and_its_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIMSPOOL_URL", "SIMVUE_URL", "SIMSPOOL_TOKEN", "SIMVUE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("SIMSPOOL_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    rules = tmp_path / "alerts.toml"
    rules.write_text(GUARD + 'where = "tag=guarded"\n')
    with Run(mode="offline", agent="off") as run:
        run.init("guarded", tags=["guarded"])
        command = [sys.executable, "-m", "simspool.agent", "run", "--alerts", str(rules)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
        try:
            client = Client(spool=tmp_path / "spool")

            def critical() -> Any:
                return client.get_alerts(str(run.id))

            run.log_metrics({"loss": float("nan")})
            assert until(critical, process) == ["nan"]
            rules.write_text(rules.read_text() + '[[alerts]]\nname = "low"\nmetric = "other"\nrule = "is below"\nthreshold = 0\n')
            process.send_signal(signal.SIGHUP)
            until(lambda: "low" in client.get_alerts(str(run.id), critical_only=False), process)
            run.log_metrics({"other": -1.0})
            assert until(lambda: len(critical()) == 2 and critical(), process) == ["low", "nan"]
        finally:
            process.terminate()
            process.communicate(timeout=30)
    with Run(mode="offline", agent="off") as run:
        run.init("other")
    assert client.get_alerts("other", critical_only=False) == []
