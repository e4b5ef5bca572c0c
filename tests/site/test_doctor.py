"""`agent doctor`: each look has a verdict of its own, nothing is changed, no token is shown, and what hangs stops no other look."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import recorded
from fault_places import network_disk
from real_server import RealServer, agent
from standin import StandIn
from trials import NotHere

from simspool.agent.doctor import machine
from simspool.agent.doctor.checks import CHECKS, examine
from simspool.agent.doctor.findings import Check, Finding, Site
from simspool.agent.doctor.scratch import Scratch
from simspool.agent.targets.settings import save_own
from simspool.sdk.config import load_config
from simspool.spool import Spool, atomic, open_spool

YES = "KillUserProcesses=yes\n"


def examined(*options: str, code: int = 0, **environment: str) -> dict[str, dict[str, Any]]:
    """Run the command; returns its findings by check (of several, the worst)."""
    done = agent("doctor", "--json", "--quick", *options, env=environment)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    rank = ("ok", "skipped", "warn", "fail")
    found: dict[str, dict[str, Any]] = {}
    for line in map(json.loads, done.stdout.splitlines()):
        before = found.get(line["check"])
        if before is None or rank.index(line["verdict"]) > rank.index(before["verdict"]):
            found[line["check"]] = line
    assert found.pop("summary")["exit_code"] == code
    return found


def tree(folder: Path) -> dict[str, str]:
    """Return what lies below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def bare_site(**environment: str) -> Site:
    return Site(lambda: load_config(environ={**os.environ, **environment}), lambda spool: [], quick=True)


# ---------------------------------------------------------------------- what is well


def test_all_is_well_and_nothing_is_changed(spool: Spool, server: RealServer, tmp_path: Path) -> None:
    recorded.whole(spool)
    agent("sync", env=server.environment, check=True)
    before = {name: tree(tmp_path / name) for name in ("spool", "state", "rt")}
    found = examined(**server.environment)
    assert {name: tree(tmp_path / name) for name in ("spool", "state", "rt")} == before
    assert not {name: f for name, f in found.items() if f["verdict"] == "fail"}
    names = {
        "python", "tokens", "disk", "spool", "space", "segments", "file system", "locks", "links", "renames", "exclusive", "fsync",
        "file times", "letter case",
        "durability", "index", "clock", "boot id", "target server", "clock of server", "agent", "sockets", "service",
        "other hosts", "open files", "file notifications", "logins", "batch system", "damage", "dead letter", "temporary files",
    }  # fmt: skip
    assert names <= set(found)
    for name in ("python", "spool", "links", "renames", "exclusive", "fsync", "durability", "target server", "damage", "dead letter"):
        assert found[name]["verdict"] == "ok", found[name]
    facts = found["durability"]["facts"]
    assert 0 < facts["p50"] <= facts["p99"]
    assert found["target server"]["facts"]["server"]
    assert abs(found["clock of server"]["facts"]["skew"]) < 2


def test_without_a_spool_none_is_made(tmp_path: Path) -> None:
    found = examined("--spool", str(tmp_path / "not" / "there"))
    assert not (tmp_path / "not").exists()
    assert "there is none yet" in found["spool"]["text"]
    assert {found[name]["verdict"] for name in ("operations", "durability", "agent", "damage")} == {"skipped"}
    assert found["targets"]["verdict"] == "warn"


def test_sustained_writes_are_measured_unless_it_must_be_quick(spool: Spool) -> None:
    done = agent("doctor", "--json")
    found = {line["check"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0
    assert found["throughput"]["facts"]["bytes_per_second"] > 0
    assert os.listdir(spool.path) == ["SPOOL"]
    assert "throughput" not in examined()


def test_people_read_a_line_for_each_and_what_to_do(spool: Spool) -> None:
    done = agent("doctor", "--quick")
    assert done.returncode == 0
    assert "WARN  targets: none is configured: what is recorded stays in the spool\n        -> SIMSPOOL_URL" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("skipped")


# ---------------------------------------------------------------------- what is not


def test_others_may_look_in(spool: Spool) -> None:
    os.chmod(spool.path, 0o755)
    found = examined()["spool"]
    assert (found["verdict"], found["next"]) == ("warn", f"chmod 700 {spool.path}")


@pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED: another owner needs root")
def test_somebody_elses_spool_fails_and_the_other_looks_go_on(spool: Spool) -> None:
    os.chown(spool.path, 12345, 12345)
    found = examined(code=1)
    assert found["spool"]["verdict"] == "fail"
    assert "belongs to uid 12345" in found["spool"]["text"]
    assert found["limits" if "limits" in found else "open files"]["verdict"] == "ok"


def test_a_newer_format_fails(spool: Spool) -> None:
    marker = Path(spool.path, "SPOOL")
    marker.write_text(marker.read_text().replace("1,", "9,", 1))
    found = examined(code=1)["spool"]
    assert found["verdict"] == "fail"
    assert "upgrade simspool" in found["text"]


def test_a_spool_in_memory_is_gone_after_a_reboot() -> None:
    folder = f"/dev/shm/simspool-test-{os.getpid()}"
    if not os.path.isdir("/dev/shm"):
        pytest.skip("SKIPPED: no /dev/shm here")
    found = examined("--spool", folder)
    assert found["file system"]["verdict"] == "warn"
    assert "gone after a reboot" in found["file system"]["text"]


def test_a_server_that_is_not_there_fails_and_says_that_nothing_is_lost(spool: Spool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    found = examined(code=1, SIMSPOOL_URL=url, SIMSPOOL_TOKEN="abcdef123456")
    assert "does not answer" in found["target server"]["text"]
    assert "nothing is lost" in found["target server"]["next"]
    assert found["clock of server"]["verdict"] == "skipped"


def test_a_token_that_is_refused_fails_and_no_token_is_ever_shown(spool: Spool, server: RealServer, tmp_path: Path) -> None:
    wrong = "canary-5b1f9e0c77"
    for token, code in ((wrong, 1), (server.token, 0)):
        environment = {"SIMSPOOL_URL": server.url, "SIMSPOOL_TOKEN": token}
        for options in ((), ("--json",)):
            done = agent("doctor", "--quick", *options, env=environment)
            assert done.returncode == code
            assert token not in done.stdout + done.stderr
    assert "does not let us in" in examined(code=1, SIMSPOOL_URL=server.url, SIMSPOOL_TOKEN=wrong)["target server"]["text"]


def test_a_token_file_that_the_group_may_read(spool: Spool, server: RealServer, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(server.token)
    path.chmod(0o640)
    tmp_path.chmod(0o755)
    found = examined(SIMSPOOL_URL=server.url, SIMSPOOL_TOKEN_FILE=str(path))
    shared = all(os.stat(p).st_mode & 0o011 for p in path.parents)
    assert found["tokens"]["verdict"] == ("warn" if shared else "ok"), found["tokens"]


def test_without_a_token_for_the_server(spool: Spool, server: RealServer) -> None:
    assert "there is none for" in examined(code=1, SIMSPOOL_URL=server.url)["tokens"]["text"]


def test_settings_that_cannot_be_read_spoil_only_what_needs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "simspool.toml").write_text("[spool\n")
    monkeypatch.chdir(tmp_path)
    found = examined(code=1)
    assert found["settings"]["verdict"] == "fail"
    assert "not valid TOML" in found["settings"]["text"]
    assert found["python"]["verdict"] == found["open files"]["verdict"] == "ok"


class Quiet(BaseHTTPRequestHandler):
    """A web server that knows no page."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    do_GET = do_POST = do_HEAD

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def wrong_clock() -> Iterator[str]:
    """The address of a web server whose clock is an hour ahead."""

    class Handler(Quiet):
        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(time.time() + 3600)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


def test_a_servers_clock_that_is_wrong(spool: Spool, wrong_clock: str) -> None:
    found = examined(code=1, SIMSPOOL_URL=wrong_clock, SIMSPOOL_TOKEN="abcdef123456")["clock of server"]
    assert found["verdict"] == "warn"
    assert 3590 < found["facts"]["skew"] < 3610


def test_what_went_wrong_before(spool: Spool, tmp_path: Path) -> None:
    os.makedirs(spool.quarantine)
    Path(spool.quarantine, "blob-0").write_text("x")
    os.makedirs(os.path.join(spool.agent, "hosts"))
    Path(spool.agent, "hosts", "node7-4026531836.json").write_text('{"pid": 1, "start_ticks": 1}')
    left = Path(spool.path, "doctor.tmp-0-x")
    left.write_text("")
    os.utime(left, (time.time() - 1e5,) * 2)
    with StandIn.start(tmp_path / "standin") as at:
        at.faults({"do": "reject", "kind": "metric", "name": "loss"})
        recorded.whole(spool)
        assert agent("sync", env=at.environment).returncode == 4
        found = examined(**at.environment)
    assert (found["damage"]["verdict"], found["damage"]["facts"]) == ("warn", {"quarantine": 1})
    assert found["dead letter"]["verdict"] == "warn"
    assert found["dead letter"]["facts"]["refused"] >= 1
    assert found["temporary files"]["verdict"] == "warn"
    assert "node7-4026531836" in found["other hosts"]["text"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for sockets with a short path, which is in force."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


def test_a_place_for_sockets_that_others_may_enter(spool: Spool, short: Path) -> None:
    assert examined()["sockets"]["text"].startswith(f"an agent's sockets would lie in {short}")
    (short / "simspool").mkdir(mode=0o755)
    assert not examined()["sockets"]["text"].startswith(f"an agent's sockets would lie in {short}"), "it is left for the next best place"


def test_a_running_agent_is_reached(spool: Spool, server: RealServer, tmp_path: Path, short: Path) -> None:
    environment = {**os.environ, **server.environment}
    with open(tmp_path / "log", "w") as log:
        running = subprocess.Popen([sys.executable, "-m", "simspool.agent", "run"], env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 40
        while not any(atomic.read_json(str(path)).get("api") for path in Path(spool.agent).glob("hosts/*.json")):
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            assert running.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        found = examined(**server.environment)
        assert found["agent"]["facts"]["pid"] == running.pid
        assert found["agent's api"]["verdict"] == "ok", found["agent's api"]
        assert found["agent's bell"]["verdict"] == "ok", found["agent's bell"]
        assert found["agent's api"]["facts"]["length"] < 107
        assert (found["lease"]["facts"]["pid"], found["lease"]["facts"]["lives"]) == (running.pid, True)
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(30)


def test_in_a_job_that_soon_ends(spool: Spool) -> None:
    found = examined(SLURM_JOB_ID="77", SLURM_JOB_END_TIME=str(int(time.time()) + 300))["batch system"]
    assert found["verdict"] == "warn"
    assert 290 <= found["facts"]["left"] <= 300


@pytest.mark.parametrize(("files", "kills"), [
    ({"etc/systemd/logind.conf": "[Login]\nKillUserProcesses=yes\n"}, True),
    ({"etc/systemd/logind.conf": "[Login]\n#KillUserProcesses=yes\n"}, False),
    ({"usr/lib/systemd/logind.conf.d/a.conf": YES, "etc/systemd/logind.conf.d/b.conf": "KillUserProcesses=no\n"}, False),
    ({"usr/lib/systemd/logind.conf.d/a.conf": YES, "etc/systemd/logind.conf.d/a.conf": ""}, False),
])  # fmt: skip
def test_what_a_site_does_to_processes_that_stay(tmp_path: Path, files: dict[str, str], kills: bool) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert machine.kill_user_processes(str(tmp_path))[0] is kills


# ---------------------------------------------------------------------- each by itself


def _hangs(site: Site) -> Iterator[Finding]:
    yield Finding("before", "ok", "seen")
    time.sleep(600)


def _raises(site: Site) -> Iterator[Finding]:
    yield Finding("before", "ok", "seen")
    raise RuntimeError("a bug with s3cret-token in it")


def _crashes(site: Site) -> Iterator[Finding]:
    yield Finding("before", "ok", "seen")
    os.kill(os.getpid(), signal.SIGKILL)


def _deaf(site: Site) -> Iterator[Finding]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield Finding("before", "ok", "seen")
    time.sleep(600)


def _talks(site: Site) -> Iterator[Finding]:
    os.write(1, b"noise on stdout")
    yield Finding("long", "ok", "x" * 1_000_000)


@pytest.mark.parametrize(("look", "said"), [
    (_hangs, "did not come to an end within 0.5 s"), (_deaf, "did not come to an end"), (_raises, "RuntimeError: a bug with *** in it"),
    (_crashes, "ended by signal 9"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork beside the test runner's threads
def test_what_breaks_or_hangs_is_a_finding_and_the_others_go_on(look: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    site = bare_site(SIMSPOOL_URL="http://127.0.0.1:1", SIMSPOOL_TOKEN="s3cret-token")
    found = list(examine(site, [Check("broken", look, 0.5), Check("next", machine.limits, 20.0)]))
    assert [f.text for f in found if f.check == "before"] == ["seen"]
    (broken,) = [f for f in found if f.check == "broken"]
    assert broken.verdict == "fail"
    assert said in broken.text
    assert any(f.check == "open files" for f in found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_disk_that_hung_is_not_asked_again() -> None:
    checks = [Check("one", _hangs, 0.3, disk=True), Check("two", machine.limits, 9.0, disk=True), Check("three", machine.limits, 9.0)]
    found = list(examine(bare_site(), checks))
    assert [f.verdict for f in found if f.check == "two"] == ["skipped"]
    assert any(f.check == "open files" for f in found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_said_is_bounded_and_nothing_else_reaches_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    (found,) = examine(bare_site(), [Check("talks", _talks, 20.0)])
    assert len(found.text) == 2000
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_temporary_files_go_also_when_a_look_is_stopped_and_check_clears_away_what_a_kill_left(spool: Spool) -> None:
    def stopped(site: Site) -> Iterator[Finding]:
        with Scratch(spool) as scratch:
            Path(scratch.path("a")).write_text("x")
            yield Finding("made", "ok", str(sorted(os.listdir(spool.path))))
            time.sleep(600)

    def killed(site: Site) -> Iterator[Finding]:
        with Scratch(spool) as scratch:
            Path(scratch.path("a")).write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
        yield from ()

    found = list(examine(bare_site(), [Check("stopped", stopped, 0.5)]))
    assert "doctor.tmp-" in found[0].text
    assert os.listdir(spool.path) == ["SPOOL"]
    list(examine(bare_site(), [Check("killed", killed, 5.0)]))
    (left,) = [n for n in os.listdir(spool.path) if n != "SPOOL"]
    assert agent("check").returncode == 0, "to a scrub it is nothing"
    recorded.whole(spool)
    assert agent("sync").returncode == 5
    os.utime(os.path.join(spool.path, left), (time.time() - 1e5,) * 2)
    assert agent("check", "--repair").returncode == 0
    assert left not in os.listdir(spool.path)


def test_every_look_has_a_bound_and_a_name_of_its_own() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(1 <= check.seconds <= 120 for check in CHECKS)


def test_nothing_of_it_is_loaded_by_other_commands() -> None:
    program = "import sys\nfrom simspool.agent.cli import main\nassert not [m for m in sys.modules if 'doctor' in m or 'wheelhouse' in m]"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# ---------------------------------------------------------------------- certificates


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server with a certificate of its own, good for ten days: its address, and the certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("SKIPPED: no openssl here")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "10"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as served:
        served.socket = context.wrap_socket(served.socket, server_side=True)
        served.handle_error = lambda *_: None  # type: ignore[method-assign]
        thread = Thread(target=served.serve_forever)
        thread.start()
        yield f"https://localhost:{served.server_port}", certificate
        served.shutdown()
        thread.join()


def test_a_certificate_that_soon_ends(spool: Spool, encrypted: tuple[str, Path]) -> None:
    url, certificate = encrypted
    found = examined(code=1, SIMSPOOL_URL=url, SIMSPOOL_TOKEN="abcdef123456", SIMSPOOL_CA_FILE=str(certificate))
    assert found["certificate of server"]["verdict"] == "warn"
    assert 9 < found["certificate of server"]["facts"]["days"] <= 10
    assert found["clock of server"]["verdict"] == "ok"


def test_a_certificate_that_nobody_vouches_for(spool: Spool, encrypted: tuple[str, Path]) -> None:
    found = examined(code=1, SIMSPOOL_URL=encrypted[0], SIMSPOOL_TOKEN="abcdef123456")["certificate of server"]
    assert found["verdict"] == "fail"
    assert "set ca_file" in found["text"]


def test_a_bundle_is_carried_by_hand(spool: Spool) -> None:
    save_own(spool, {"far": {"kind": "bundle"}})
    assert "carried by hand" in examined()["target far"]["text"]


# ---------------------------------------------------------------------- a network disk


@pytest.fixture
def far_disk(tmp_path: Path) -> Iterator[tuple[Path, Any]]:
    """A folder over the SFTP protocol, and its server."""
    try:
        with network_disk(tmp_path / "disk", tmp_path / "far") as (served,):
            yield tmp_path / "far", served
    except NotHere as why:
        pytest.skip(f"SKIPPED: {why}")


def test_a_network_disk_is_told_from_a_local_one(far_disk: tuple[Path, Any]) -> None:
    folder, _ = far_disk
    recorded.whole(open_spool(folder / "spool", create=True))
    found = examined("--spool", str(folder / "spool"))
    assert found["file system"]["facts"]["network"] is True
    assert found["segments"]["facts"]["writer"] == "file"
    assert "nobody can tell" in found["locks"]["text"]
    assert {found[name]["verdict"] for name in ("exclusive", "fsync")} == {"ok"}
    assert found["renames"]["verdict"] in {"ok", "warn"}, "sshfs keeps a file's old size for a moment"
    assert [n for n in os.listdir(folder / "spool") if "tmp-" in n] == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_disk_that_does_not_answer_costs_its_time_once(far_disk: tuple[Path, Any]) -> None:
    folder, served = far_disk
    open_spool(folder / "spool", create=True)
    site = bare_site(SIMSPOOL_DIR=str(folder / "spool"))
    served.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        found = list(examine(site, [replace(check, seconds=min(check.seconds, 1.0 if check.disk else 20.0)) for check in CHECKS]))
        assert time.monotonic() - began < 60
    finally:
        served.send_signal(signal.SIGCONT)
    by_name = {f.check: f for f in found}
    assert (by_name["disk"].verdict, by_name["disk"].facts) == ("fail", {"hung": True})
    assert {by_name[c.name].verdict for c in CHECKS if c.disk and c.name != "disk"} == {"skipped"}
    assert by_name["python"].verdict == by_name["open files"].verdict == by_name["clock"].verdict == "ok"
