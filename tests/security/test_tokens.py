"""A12, A23: where tokens come from, and that no address, list, error or log gives one away."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from certificates import private

from simspool.agent.targets.settings import load_targets, parse
from simspool.sdk import Client
from simspool.sdk.config import load_config
from simspool.sdk.errors import ConfigError
from simspool.sdk.secret_files import readers
from simspool.spool import Spool

SECRET = "canary-7f3a9c"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A folder that everybody may enter, as far as this machine's own folders allow to make one."""
    path = Path("/tmp") / f"simspool-test-{os.getpid()}-{tmp_path.name}"
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    yield path  # type: ignore[misc]
    for one in path.iterdir():
        one.unlink()
    path.rmdir()


def at_mode(path: Path, mode: int) -> Path:
    path.write_text(SECRET + "\n")
    path.chmod(mode)
    return path


@pytest.mark.parametrize(("mode", "who"), [(0o600, ""), (0o400, ""), (0o640, "group"), (0o644, "everybody"), (0o604, "everybody")])
def test_who_can_read_a_file_is_what_counts(mode: int, who: str, house: Path, tmp_path: Path) -> None:
    if os.stat("/tmp").st_mode & 0o005 != 0o005:
        pytest.skip("/tmp is private here")
    assert readers(str(at_mode(house / "token", mode))) == who
    assert readers(str(at_mode(tmp_path / "token", mode))) == ""  # behind a private folder


def test_a_token_that_everybody_can_read_is_refused(house: Path, tmp_path: Path, spool: Spool) -> None:
    path = at_mode(house / "token", 0o644)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}") as error:
        parse("lab", {"kind": "mlflow", "url": "https://h", "token_file": str(path)}, "spool")
    assert SECRET not in str(error.value)
    config = load_config(token_file=path)  # recording needs none: a note is enough
    assert config.server_token is None
    assert "chmod 600" in config.notes[0]
    done = subprocess.run(
        [sys.executable, "-m", "simspool.agent", "status", "--spool", spool.path, "--token-file", str(path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "chmod 600" in done.stderr
    path.chmod(0o640)
    made = parse("lab", {"kind": "mlflow", "url": "https://h", "token_file": str(path)}, "spool")
    assert made is not None
    assert made.token == SECRET
    assert made.concerns == (f"target lab of the spool: the token file {path} can be read by its group: run `chmod 600 {path}`",)
    (house / "simspool.toml").write_text(f'[server]\nurl = "https://h"\ntoken = "{SECRET}"\n')
    config = load_config(folder=str(house))
    assert config.server_token is None
    assert "simspool.toml can be read by every user" in config.notes[0]
    (house / "simspool.toml").chmod(0o600)
    assert load_config(folder=str(house)).server_token == SECRET


@pytest.mark.parametrize("text", ["https://user:{}@host", "https://{}@host", "https://host/x?token={}", "https://host#{}", "https://u:{}@h:99999/"])
def test_an_address_with_a_secret_in_it_is_refused_without_showing_it(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = text.format(SECRET)
    calls: list[Callable[[], Any]] = [
        lambda: load_config(server_url=url),
        lambda: parse("lab", {"kind": "simvue", "url": url}, "spool"),
        lambda: Client(server_url=url, server_token="t"),
    ]
    for call in calls:
        with pytest.raises(ConfigError) as error:
            call()
        assert SECRET not in str(error.value)
    monkeypatch.chdir(tmp_path)
    Path("simvue.toml").write_text(f'[server]\nurl = "{url}"\n')  # another program's file hurts no run
    config = load_config()
    assert config.server_url is None
    assert SECRET not in str(config.notes)


def test_a_literal_token_has_no_place_in_a_targets_table() -> None:
    with pytest.raises(ConfigError, match="does not stand in settings") as error:
        parse("lab", {"kind": "simvue", "url": "https://h", "token": SECRET}, "spool")
    assert SECRET not in str(error.value)


def test_the_keyring(monkeypatch: pytest.MonkeyPatch, spool: Spool) -> None:
    table = {"kind": "simvue", "url": "https://h", "token": "keyring:simspool/lab/me"}
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(ConfigError, match=r"pip install simspool\[keyring\]"):
        parse("lab", table, "spool")
    asked = []
    ring = types.ModuleType("keyring")

    def get_password(service: str, user: str) -> str | None:
        asked.append((service, user))
        if service == "locked":
            raise RuntimeError(f"cannot unlock {SECRET}")
        return SECRET if service == "simspool/lab" else None

    ring.get_password = get_password  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", ring)
    made = parse("lab", table, "spool")
    assert made is not None
    assert made.token == SECRET
    assert asked == [("simspool/lab", "me")]
    assert SECRET not in repr(made)
    monkeypatch.setenv("SIMSPOOL_URL", "https://h")
    monkeypatch.setenv("SIMSPOOL_TOKEN", "keyring:simspool/lab/me")
    [server] = load_targets(spool, load_config())
    assert server.token == SECRET
    assert SECRET not in repr(server) + repr(load_config())
    for name, said in (("keyring:other/me", "`keyring set other me`"), ("keyring:locked/me", "unlock it"), ("keyring:me", "is written")):
        with pytest.raises(ConfigError, match=said) as error:
            parse("lab", {**table, "token": name}, "spool")
        assert SECRET not in str(error.value)


def test_a_credential_of_systemd_wins_and_is_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from simspool.agent.cli.settings import Settings

    private(tmp_path / "simspool.token", SECRET)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("SIMSPOOL_TOKEN", "another")
    assert Settings().server_token == SECRET
    assert SECRET not in repr(Settings())


def test_no_command_takes_a_token_as_a_word() -> None:
    """What is on a command line is in the process list."""
    import click

    from simspool.agent.cli import main

    def options(command: click.Command, ctx: click.Context) -> list[str]:
        found = [o for p in command.params for o in p.opts]
        if isinstance(command, click.Group):
            for name in command.list_commands(ctx):
                inner = command.get_command(ctx, name)
                assert inner is not None
                found += options(inner, ctx)
        return found

    every = set(options(main, click.Context(main)))
    assert "--token-file" in every
    assert {o for o in every if any(word in o for word in ("token", "password", "secret"))} == {"--token-file"}


@pytest.mark.parametrize(
    ("url", "is_told"),
    [("http://h.example.org", True), ("http://10.1.2.3:8", True), ("http://127.0.0.1:8", False), ("http://localhost:8", False),
     ("http://[::1]:8", False), ("https://h.example.org", False)],
)  # fmt: skip
def test_a_token_over_plain_http_is_said_once(url: str, is_told: bool, tmp_path: Path) -> None:
    token = private(tmp_path / "token", SECRET)
    made = parse("lab", {"kind": "simvue", "url": url, "token_file": str(token)}, "spool")
    assert made is not None
    assert bool(made.concerns) == is_told
    if is_told:
        assert "unencrypted" in made.concerns[0]
    without = parse("lab", {"kind": "simvue", "url": url}, "spool")
    assert without is not None
    assert without.concerns == ()


def test_the_agent_says_concerns_once() -> None:
    import asyncio

    from simspool.agent.drain.drains import Drains
    from simspool.agent.targets.settings import TargetSettings

    said: list[str] = []
    settings = TargetSettings("x", "nothing", "http://h", concerns=("it is not safe",))
    lane: Any = types.SimpleNamespace(server=None)

    def build(_: TargetSettings) -> Any:
        return types.SimpleNamespace(url="http://h")

    drains = Drains(lambda: [settings], lambda *_: lane, report=said.append, build=build)

    async def twice() -> None:
        await drains.load()
        await drains.load()

    asyncio.run(twice())
    assert said == ["not safe: it is not safe"]
