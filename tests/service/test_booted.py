"""The services as systemd really runs them, in a machine that boots: ready, drained, watched, restarted, rebooted, removed.

The tests share one machine and go in order. `-s` shows the figures.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Iterator

import pytest
from booted import PYTHON, Booted, Unavailable, until

pytestmark = pytest.mark.root
URL = "http://127.0.0.1:8765"
ALICE, BOB = "simspool-agent@alice.service", "simspool-agent.service"

SERVER = f"""[Service]
ExecStart={PYTHON} -P -m simspool.agent serve --data /srv/simspool --port 8765
[Install]
WantedBy=multi-user.target
"""
RECORD = """
import sys, time
from simspool.sdk import Run
name, count, patient = sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["until-heard"]
with Run(mode="online" if patient else "offline", agent="off") as run:
    run.init(name, folder="/booted")
    for i in range(count):
        assert run.log_metrics({"x": i / 2}, step=i) is True
    while patient and not run._recording.is_heard:
        run.log_event("is anybody there?")
        time.sleep(0.05)
    print(run.id)
"""
ASK = """
import collections, json, sys, urllib.parse, urllib.request
run, token = sys.argv[1], open("/srv/simspool/token").read().strip()
query = urllib.parse.urlencode({"runs": json.dumps([run]), "metrics": '["x"]', "xaxis": "step"})
request = urllib.request.Request(f"http://127.0.0.1:8765/api/metrics?{query}", headers={"Authorization": f"Bearer {token}"})
try:
    found = json.load(urllib.request.urlopen(request, timeout=30))
except OSError:
    print("[-1, 0, 0]")
    sys.exit()
points = (found.get(run) or {}).get("x", [])
print(json.dumps([len(points), len({p["step"] for p in points}), sum(p["value"] != p["step"] / 2 for p in points)]))
"""
HANG = """
import ctypes, subprocess
from simspool.sdk import Run
with Run(mode="offline", agent="off") as run:
    run.init("hangs", folder="/booted")
    subprocess.Popen(["sleep", "601"])
    open("hung-run", "w").write(run.id)
    ctypes.PyDLL(None).sleep(600)  # the interpreter is held: nothing of ours runs in this process
"""
# What the agent's work needs, tried inside the hardened service; and what it must not get.
PROBE = """
import ctypes, os, signal, socket, subprocess, sys
import psutil
victim = int(os.environ["VICTIM"])
assert open(f"/proc/{victim}/stat").read() and open(f"/proc/{victim}/io").read() and os.listdir(f"/proc/{victim}/fd")
assert any(p.info["name"] == "systemd" for p in psutil.process_iter(["name"])), "other processes are hidden"
psutil.net_io_counters(), psutil.disk_io_counters(), psutil.virtual_memory(), psutil.cpu_times()
handle = os.pidfd_open(victim)
signal.pidfd_send_signal(handle, signal.SIGTERM)
assert ctypes.CDLL(None).inotify_init1(0) >= 0
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).bind((0, 1))
assert subprocess.run([sys.executable, "-c", "import numpy; print(1)"], capture_output=True, text=True).stdout == "1\\n"
home = os.path.expanduser("~")
for allowed in (f"{home}/.local/share/simspool/probe", f"{home}/.local/state/simspool/probe", os.environ["XDG_RUNTIME_DIR"] + "/probe"):
    open(allowed, "w").close()
    os.unlink(allowed)
for refused in (f"{home}/probe", "/etc/probe", "/usr/probe", "/var/probe"):
    try:
        open(refused, "w")
    except OSError:
        continue
    raise SystemExit(f"{refused} can be written")
libc = ctypes.CDLL(None, use_errno=True)
for name, arguments in (("unshare", (0x10000000,)), ("setuid", (0,)), ("mount", (b"none", b"/srv", b"tmpfs", 0, 0)), ("kill", (1, 15))):
    assert getattr(libc, name)(*arguments) == -1, f"{name} is allowed"
open(f"{home}/.local/state/simspool/probed", "w").write("fine")
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """A machine with a server that starts at boot, and two users: alice has a system service, bob one of his own."""
    booted = Booted(tmp_path_factory.mktemp("machine"), ["alice", "bob"])
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(booted)
        except Unavailable as reason:
            pytest.skip(f"SKIPPED: no machine can be booted here: {reason}")
        (booted.root / "etc/systemd/system/simserver.service").write_text(SERVER)
        (booted.root / "opt/probe.py").write_text(PROBE)
        (booted.root / "opt/hang.py").write_text(HANG)
        (booted.home / "alice/simspool.toml").write_text("[abort]\nanswer_grace = 0.5\nterm_grace = 0.5\n")
        booted.run("systemctl", "enable", "--now", "simserver.service")
        until("the server started", lambda: (booted.root / "srv/simspool/url").exists())
        yield booted


@pytest.fixture(autouse=True)
def say(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print how long each took: the figures of this file."""
    began = time.monotonic()
    yield
    print(f" [{time.monotonic() - began:.2f} s]", end="")


def token(machine: Booted) -> str:
    return (machine.root / "srv/simspool/token").read_text().strip()


def install(machine: Booted, *options: str) -> str:
    """Install alice's system service, as an administrator does."""
    words = ("service", "install", "--system", "--for", "alice", "--url", URL, "--token-file", "/srv/simspool/token", *options)
    return machine.run(PYTHON, "-m", "simspool.agent", *words).stdout


def record(machine: Booted, user: str, name: str, count: int, *options: str) -> str:
    """Record a run as this user; returns its id."""
    return machine.python(RECORD, name, str(count), *options, user=user).split()[-1]


def arrived(machine: Booted, run: str) -> list[int]:
    """Ask the server: points (-1 when it does not answer), different steps, wrong values."""
    found: list[int] = json.loads(machine.python(ASK, run))
    return found


def exactly(machine: Booted, run: str, count: int) -> None:
    """Wait until a run is all there, each point once."""
    until(f"{count} points of {run} are there: {arrived(machine, run)}", lambda: arrived(machine, run) == [count, count, 0])


def override(machine: Booted, text: str) -> None:
    """An administrator's own drop-in for alice's service."""
    (machine.root / f"etc/systemd/system/{ALICE}.d/zz-own.conf").write_text(f"[Service]\n{text}\n")
    machine.run("systemctl", "daemon-reload")


def main_pid(machine: Booted) -> int:
    return int(machine.show(ALICE, "MainPID"))


def test_a_system_service_is_ready_and_drains(machine: Booted) -> None:
    began = time.monotonic()
    assert ALICE in install(machine)  # returns when systemd has heard READY=1
    print(f" boot {machine.boot_seconds[0]:.2f} s, install to ready {time.monotonic() - began:.2f} s", end="")
    assert machine.show(ALICE, "ActiveState") == "active"
    assert machine.show(ALICE, "StatusText").startswith("following 0 runs")
    run = record(machine, "alice", "first", 1000, "until-heard")  # ends only when the agent's bell was found
    exactly(machine, run, 1000)
    until("it says that it drains", lambda: machine.show(ALICE, "StatusText") == "following 0 runs, draining")
    resident = machine.run("grep", "VmRSS", f"/proc/{main_pid(machine)}/status").stdout.split()[1]
    print(f", idle {int(resident) / 1024:.0f} MiB", end="")
    status = json.loads(machine.run(PYTHON, "-m", "simspool.agent", "status", "--json", user="alice").stdout)
    assert status["agent"]["pid"] == main_pid(machine)  # the local API answers alice's commands
    assert machine.run(PYTHON, "-m", "simspool.agent", "service", "status", "--system", "--for", "alice", user="bob").returncode == 0


def test_the_token_is_a_credential_and_shows_nowhere(machine: Booted) -> None:
    secret, pid = token(machine), main_pid(machine)
    seen = machine.run("systemctl", "show", ALICE).stdout + machine.run("systemctl", "cat", ALICE).stdout + machine.journal(ALICE)
    seen += machine.run("ps", "-efww").stdout + machine.run("cat", f"/proc/{pid}/environ").stdout
    seen += machine.run("systemctl", "status", ALICE, check=False).stdout
    assert len(secret) > 20
    assert secret not in seen
    assert "LoadCredential=simspool.token:/etc/simspool/tokens/alice" in seen
    stored = machine.root / "etc/simspool/tokens/alice"
    assert (stored.stat().st_mode & 0o777, stored.stat().st_uid) == (0o600, 0)
    assert machine.run("cat", "/etc/simspool/tokens/alice", user="alice", check=False).returncode != 0


def test_an_encrypted_token_will_do(machine: Booted) -> None:
    machine.run("systemd-creds", "setup")
    machine.run("systemd-creds", "encrypt", "--name=simspool.token", "--with-key=host", "/srv/simspool/token", "/etc/alice.cred")
    install(machine, "--token-file", "/etc/alice.cred")
    assert not (machine.root / "etc/simspool/tokens/alice").exists()
    exactly(machine, record(machine, "alice", "with an encrypted token", 100), 100)
    install(machine)


def test_the_hardening_leaves_what_the_agent_needs_and_no_more(machine: Booted) -> None:
    machine.run("systemd-run", "--quiet", "--unit=victim", "--uid=alice", "sleep", "600")  # outside of the service's own group
    victim = machine.show("victim.service", "MainPID")
    override(machine, f"Environment=VICTIM={victim}\nExecStartPre={PYTHON} /opt/probe.py")
    done = machine.run("systemctl", "restart", ALICE, check=False)
    assert done.returncode == 0, machine.journal(ALICE)[-3000:]
    assert (machine.home / "alice/.local/state/simspool/probed").read_text() == "fine"
    until("the signal arrived", lambda: machine.show("victim.service", "LoadState") == "not-found")
    override(machine, "")


def test_it_can_end_a_run_that_hangs(machine: Booted) -> None:
    machine.run("systemd-run", "--quiet", "--unit=hung", "--uid=alice", "--working-directory=/home/alice", PYTHON, "/opt/hang.py")
    run = until("the script records", lambda: machine.run("cat", "hung-run", user="alice", check=False).stdout)
    done = machine.run(PYTHON, "-m", "simspool.agent", "abort", run, "--reason", "it hangs", "--wait", "--json", user="alice", check=False)
    until("it is gone", lambda: machine.show("hung.service", "ActiveState") != "active")
    assert machine.run("pgrep", "-f", "sleep 601", check=False).stdout == "", done
    shown = json.loads(machine.run(PYTHON, "-m", "simspool.agent", "show", run, "--json", user="alice").stdout)
    assert shown["status"] == "terminated", (done, shown)


def test_a_frozen_agent_is_killed_and_restarted(machine: Booted) -> None:
    override(machine, "WatchdogSec=2\nRestartSec=100ms")
    machine.run("systemctl", "restart", ALICE)
    time.sleep(5)  # an idle agent lives through many of its watchdog's times
    assert machine.show(ALICE, "NRestarts") == "0"
    pid = main_pid(machine)
    began = time.monotonic()
    machine.run("kill", "-STOP", str(pid))
    run = record(machine, "alice", "meanwhile", 500)
    until("systemd restarted it", lambda: machine.show(ALICE, "NRestarts") == "1")
    until("it is ready again", lambda: machine.show(ALICE, "ActiveState") == "active" and main_pid(machine) not in {0, pid})
    print(f" stopped to ready again {time.monotonic() - began:.2f} s (WatchdogSec=2)", end="")
    log = machine.journal(ALICE)
    assert "Watchdog timeout" in log
    assert "Failed with result 'watchdog'" in log
    exactly(machine, run, 500)


def test_a_hung_disk_starves_the_watchdog(machine: Booted) -> None:
    """The event loop is well and the agent's worker waits for a disk, uninterruptibly: only the missing progress tells."""
    machine.run("systemctl", "stop", "simserver.service")
    run = record(machine, "alice", "before the disk hangs", 500)
    until("the agent knows the run", lambda: machine.show(ALICE, "StatusText").startswith("following 0 runs, waiting"))
    before = machine.journal(ALICE).count("Watchdog timeout")
    pid = main_pid(machine)
    machine.freeze()
    machine.run("systemctl", "start", "simserver.service")  # now there is an intent to journal
    until("systemd gave it up", lambda: machine.journal(ALICE).count("Watchdog timeout") > before)
    machine.thaw()
    until("another one is ready", lambda: machine.show(ALICE, "ActiveState") == "active" and main_pid(machine) not in {0, pid})
    log = machine.journal(ALICE)
    assert "no progress for 2 s in:" in log
    assert "worker thread" in log
    assert "Fatal Python error: Aborted" in log  # the stack of every thread, for whoever looks into it
    exactly(machine, run, 500)


def test_a_user_has_a_service_of_his_own(machine: Booted) -> None:
    machine.run("loginctl", "enable-linger", "bob")
    until(
        "bob's manager runs",
        lambda: machine.run("systemctl", "--user", "is-system-running", user="bob", check=False).stdout.strip() in {"running", "degraded"},
    )
    (machine.home / "bob/token").write_text(token(machine))
    os.chown(machine.home / "bob/token", 4201, 4201)
    words = (PYTHON, "-m", "simspool.agent", "service", "install", "--user", "--url", URL, "--token-file", "token")
    began = time.monotonic()
    done = machine.run(*words, user="bob")
    print(f" install to ready {time.monotonic() - began:.2f} s", end="")
    assert "linger" not in done.stderr
    assert machine.show(BOB, "ActiveState", "bob") == "active"
    exactly(machine, record(machine, "bob", "his", 300, "until-heard"), 300)
    until("it says that it drains", lambda: machine.show(BOB, "StatusText", "bob") == "following 0 runs, draining")
    assert machine.show(BOB, "WatchdogUSec", "bob") == "5min"


def test_a_timer_takes_the_agents_place_and_gives_it_back(machine: Booted) -> None:
    words = (PYTHON, "-m", "simspool.agent", "service", "install", "--user", "--url", URL, "--token-file", "token")
    machine.run(*words, "--timer", "15min", user="bob")
    assert machine.show(BOB, "LoadState", "bob") == "not-found"
    assert machine.show("simspool-sync.timer", "ActiveState", "bob") == "active"
    run = record(machine, "bob", "for the timer", 200)
    machine.run("systemctl", "--user", "start", "simspool-sync.service", user="bob")
    assert arrived(machine, run) == [200, 200, 0]
    found = json.loads(machine.run(PYTHON, "-m", "simspool.agent", "service", "status", "--user", "--json", user="bob").stdout)
    assert (found["form"], found["active"], found["last_sync"]) == ("timer", True, "success")
    machine.run("systemctl", "stop", "simserver.service")
    machine.run("systemctl", "--user", "start", "simspool-sync.service", user="bob")  # no server: no failure, the next time will do
    machine.run("systemctl", "start", "simserver.service")
    machine.run(*words, user="bob")
    assert machine.show("simspool-sync.timer", "LoadState", "bob") == "not-found"
    assert machine.show(BOB, "ActiveState", "bob") == "active"


def test_a_system_timer_syncs(machine: Booted) -> None:
    install(machine, "--timer", "1h")
    assert machine.show("simspool-sync@alice.timer", "ActiveState") == "active"
    assert "1h" in machine.show("simspool-sync@alice.timer", "TimersMonotonic")
    assert machine.show(ALICE, "ActiveState") == "inactive"
    run = record(machine, "alice", "for the system timer", 200)
    machine.run("systemctl", "start", "simspool-sync@alice.service")
    assert arrived(machine, run) == [200, 200, 0]
    install(machine)
    assert machine.show(ALICE, "ActiveState") == "active"
    assert machine.show("simspool-sync@alice.timer", "LoadState") == "not-found"


def test_power_is_cut_in_the_middle_of_drains(machine: Booted) -> None:
    """Three times, as soon as something has arrived or a moment later; in the end everything is there, once."""
    count, moments, partial = 300_000, random.Random(7), []
    mine, his = [], []
    for _ in range(3):
        machine.run("systemctl", "stop", "simserver.service")
        mine.append(record(machine, "alice", "large", count))
        his.append(record(machine, "bob", "small", 1000))
        machine.run("systemctl", "start", "simserver.service")
        until("the drain has begun", lambda: arrived(machine, mine[-1])[0] > 0)
        time.sleep(moments.random() * 0.1)
        machine.kill()
        machine.boot()
        partial.append(until("the server is back", lambda: arrived(machine, mine[-1])[0] + 1) - 1)
    began = time.monotonic()
    for run in mine:
        exactly(machine, run, count)
    for run in his:
        exactly(machine, run, 1000)
    boots = " ".join(f"{s:.2f}" for s in machine.boot_seconds)
    print(f" boots {boots} s; at the cuts {partial} of {count}; the rest {time.monotonic() - began:.2f} s after the last boot", end="")
    assert min(partial) > 0  # what a server has acknowledged, it has
    assert machine.show(ALICE, "NRestarts") == "0"
    assert json.loads(machine.run(PYTHON, "-m", "simspool.agent", "sync", "--json", user="alice").stdout)["sent_records"] == 0


def test_uninstall_removes_what_install_put(machine: Booted) -> None:
    units = machine.root / "etc/systemd/system"
    machine.run(PYTHON, "-m", "simspool.agent", "service", "uninstall", "--user", user="bob")
    machine.run(PYTHON, "-m", "simspool.agent", "service", "uninstall", "--system", "--for", "alice")
    assert [str(p.relative_to(units)) for p in units.rglob("*simspool*")] == [f"{ALICE}.d"]  # it holds the administrator's own file
    assert [p.name for p in (units / f"{ALICE}.d").iterdir()] == ["zz-own.conf"]
    assert not (machine.root / "etc/simspool").exists()
    assert not list((machine.home / "bob/.config/systemd").rglob("simspool*"))
    assert machine.run("pgrep", "-f", "simspool.agent run", check=False).stdout == ""
    assert "there was no service" in machine.run(PYTHON, "-m", "simspool.agent", "service", "uninstall", "--user", user="bob").stdout
