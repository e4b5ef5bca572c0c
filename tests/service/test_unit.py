"""The units: systemd itself accepts them, they are as hard as is claimed, and what is filled in arrives as it was meant."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pytest

from simspool.agent.service import unit

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="SKIPPED: systemd-analyze is not installed")
SHIPPED = sorted(p.name for p in resources.files("simspool.systemd").iterdir() if p.name.endswith((".service", ".timer")))
SERVICES = [name for name in SHIPPED if name.endswith(".service")]
ODD = ["--spool", '/a b/50% of $HOME/"q"\\', "--url", "https://example.org/?a=1;b"]
WHO = "somebody"  # systemd-analyze takes any name but a known privileged one


def written(folder: Path, arguments: Sequence[str] = ()) -> Path:
    """Put all units into a folder, filled in, and the templates' instances for one user."""
    folder.mkdir(exist_ok=True)
    for name in SHIPPED:
        text = unit.render(name, arguments if "@" not in name else ())
        (folder / name).write_text(text)
        if "@" in name:
            (folder / name.replace("@", f"@{WHO}")).write_text(text)
    return folder


def analyze(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze in a folder. It also looks at the distribution's units, whose sockets want a short runtime folder."""
    with tempfile.TemporaryDirectory(prefix="simspool-") as runtime:
        environment = {**os.environ, "XDG_RUNTIME_DIR": runtime}
        return subprocess.run(["systemd-analyze", *words], env=environment, cwd=folder, capture_output=True, text=True, check=False)


def test_all_forms_are_shipped() -> None:
    forms = [f.format(mark) for f in (unit.AGENT, unit.SYNC, unit.TIMER) for mark in ("", "@")]
    assert sorted(forms) == SHIPPED


@needs_systemd
@pytest.mark.parametrize("arguments", [[], ODD], ids=["plain", "odd"])
@pytest.mark.parametrize("name", SHIPPED)
def test_systemd_accepts_every_unit(tmp_path: Path, name: str, arguments: list[str]) -> None:
    folder = written(tmp_path / "units", arguments)
    scope = [] if "@" in name else ["--user"]
    done = analyze(folder, "verify", *scope, f"./{name.replace('@', f'@{WHO}')}")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")  # an unknown key is only a warning, on stderr


@needs_systemd
def test_systemd_accepts_the_drop_ins(tmp_path: Path) -> None:
    folder = written(tmp_path / "units")
    for name, text in (
        (
            f"simspool-agent@{WHO}.service",
            unit.drop_in("run", ODD, ["/with blank/50%/$HOME", "/plain"], "/etc/a b/50%.cred", container=True),
        ),
        (f"simspool-sync@{WHO}.service", unit.drop_in("sync", ODD, ["/plain"], "/etc/token")),
        (f"simspool-sync@{WHO}.timer", unit.timer_drop_in(90)),
    ):
        (folder / f"{name}.d").mkdir()
        (folder / f"{name}.d" / "simspool.conf").write_text(text)
        done = analyze(folder, "verify", f"./{name}")
        assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize(("name", "threshold"), [(n, 20 if "@" in n else 65) for n in SERVICES])
def test_the_units_are_as_hard_as_is_claimed(root: Path, tmp_path: Path, name: str, threshold: int) -> None:
    """At most 2.0 for the machine's; what a user's manager cannot give, it cannot give. The documented figures are these."""
    folder = written(tmp_path / "units")
    path = f"./{name.replace('@', f'@{WHO}')}"
    done = analyze(folder, "security", "--offline=true", f"--threshold={threshold}", path)
    assert done.returncode == 0, done.stdout
    score = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert score is not None
    assert f"| `{name}` | {score[1]} |" in (root / "docs" / "service.md").read_text()


@needs_systemd
def test_every_gap_in_the_hardening_has_its_reason(root: Path, tmp_path: Path) -> None:
    folder = written(tmp_path / "units")
    done = analyze(folder, "security", "--offline=true", "--json=short", f"./simspool-agent@{WHO}.service")
    text = (root / "docs" / "service.md").read_text()
    gaps = {re.split("[=:]", line["name"])[0] for line in json.loads(done.stdout) if line["exposure"] and float(line["exposure"]) > 0}
    assert gaps
    assert sorted(g for g in gaps if f"`{g}" not in text) == []


def directives(name: str) -> list[str]:
    """The hardening of a unit: everything after the first of it."""
    lines = [line for line in unit.render(name).splitlines() if line and not line.startswith("#")]
    found = lines[lines.index("Nice=10") :]
    return found[: found.index("[Install]")] if "[Install]" in found else found


def test_a_sync_is_as_hard_as_an_agent() -> None:
    assert directives("simspool-sync.service") == directives("simspool-agent.service")
    assert directives("simspool-sync@.service") == directives("simspool-agent@.service")
    assert set(directives("simspool-agent.service")) <= {*directives("simspool-agent@.service"), "SystemCallFilter=@system-service"}


def test_no_unit_has_room_for_a_secret() -> None:
    for name in SHIPPED:
        assert re.findall(r"^(?:Environment|EnvironmentFile|PassEnvironment)=(?!XDG_RUNTIME_DIR=%t)", unit.render(name), re.MULTILINE) == []


def test_the_interpreter_is_absolute_and_the_arguments_are_quoted() -> None:
    text = unit.render("simspool-agent.service", ["--spool", "/a b"])
    assert re.search(r"^ExecStart=(\S+)", text, re.MULTILINE)[1] == os.path.abspath(sys.executable)  # type: ignore[index]
    assert '-m simspool.agent run --spool "/a b"\n' in text
    for name in SHIPPED:
        assert re.search(r"@[A-Z]+@", unit.render(name).replace("the @...@", "")) is None


def test_a_drop_in_replaces_what_the_template_has() -> None:
    text = unit.drop_in("run", ["--url", "http://x"], ["/s p", "/state"], "/t.cred", python="/opt/python")
    assert "ExecStart=\nExecStart=/opt/python -P -m simspool.agent run --url http://x\n" in text
    assert 'ReadWritePaths=\nReadWritePaths="/s p" /state\n' in text
    assert 'RequiresMountsFor="/s p" /state\n' in text
    assert "LoadCredentialEncrypted=simspool.token:/t.cred\n" in text
    assert "LoadCredential=simspool.token:/t\n" in unit.drop_in("run", [], [], "/t")
    assert "Credential" not in unit.drop_in("run", [], [], None)
    assert "ProtectKernelTunables=no" not in text
    assert "ProtectKernelTunables=no" in unit.drop_in("run", [], [], None, container=True)
    with pytest.raises(ValueError, match="unit file"):
        unit.drop_in("run", [], [], "/t\nUser=root")


@pytest.mark.parametrize(
    ("word", "quoted"),
    [("/plain", "/plain"), ("50%", "50%%"), ("$HOME", "$$HOME"), ("a b", '"a b"'), ('a"b', '"a\\"b"'), ("a\\b", '"a\\\\b"'), ("", '""')],
)
def test_words_are_quoted_for_systemd(word: str, quoted: str) -> None:
    assert unit.quote(word) == quoted


@pytest.mark.parametrize("word", ["a\nExecStart=/bin/evil", "\x00", "\udc80"])
def test_what_a_unit_cannot_hold_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="unit file"):
        unit.quote(word)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15min", 900), (" 6h ", 21600), ("1d", 86400), ("10s", 10)])
def test_intervals(text: str, seconds: int) -> None:
    assert unit.parse_interval(text) == seconds


@pytest.mark.parametrize("text", ["", "15", "9s", "0min", "-5min", "1h30min", "15 minutes", "9999999s", "1.5h", "\u0661h\n"])
def test_what_is_no_interval_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="say 90s|10s is the least"):
        unit.parse_interval(text)


@pytest.mark.parametrize("user", ["alice", "jean-luc", "a.b_c", "4200", "_svc"])
def test_users_that_can_stand_in_a_units_name(user: str) -> None:
    assert unit.check_instance(user) == user


@pytest.mark.parametrize("user", ["", "-x", "../x", "a/b", "DOMAIN\\alice", "a@b", "a b", "a%i", "alice\n", "ali\u00e7e"])
def test_users_that_cannot_are_refused(user: str) -> None:
    with pytest.raises(ValueError, match="id -u"):
        unit.check_instance(user)
