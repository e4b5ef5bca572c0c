"""Where settings come from, and that the token shows nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simspool.sdk import ConfigError, Run
from simspool.sdk.config import Graces, load_config
from simspool.spool import Durability


@pytest.fixture(autouse=True)
def no_spool(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.delenv("SIMSPOOL_DIR")


def test_the_default_spool_is_the_users_data_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config().spool_dir == str(home / ".local/share/simspool")
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    config = load_config()
    assert config.spool_dir == str(home / "data/simspool")
    assert (config.server_url, config.server_token, config.durability, config.segments) == (None, None, Durability.INTERVAL, None)


def test_argument_then_environment_then_file(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tok").write_text("from-file\n")
    (tmp_path / "simspool.toml").write_text(
        '[spool]\ndir = "here"\ndurability = "each"\nsegments = "file"\n[server]\nurl = "http://toml/"\ntoken_file = "tok"\n'
    )
    config = load_config()
    assert (config.spool_dir, config.durability, config.segments) == (str(tmp_path / "here"), Durability.EACH, "file")
    assert (config.server_url, config.server_token) == ("http://toml", "from-file")
    assert config.sources["url"] == str(tmp_path / "simspool.toml")
    monkeypatch.setenv("SIMSPOOL_DIR", "~/env")
    monkeypatch.setenv("SIMSPOOL_DURABILITY", "lazy")
    monkeypatch.setenv("SIMSPOOL_SEGMENTS", "mapped")
    monkeypatch.setenv("SIMSPOOL_URL", "http://env")
    monkeypatch.setenv("SIMSPOOL_TOKEN", "env-token")
    config = load_config()
    assert (config.spool_dir, config.durability, config.segments) == (str(home / "env"), Durability.LAZY, "mapped")
    assert (config.server_url, config.server_token) == ("http://env", "env-token")
    config = load_config(spool=tmp_path / "arg", server_url="http://arg", server_token="arg-token")
    assert (config.spool_dir, config.server_url, config.server_token) == (str(tmp_path / "arg"), "http://arg", "arg-token")


def test_a_token_file_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t").write_text(" secret \n")
    monkeypatch.setenv("SIMSPOOL_TOKEN_FILE", str(tmp_path / "t"))
    assert load_config().server_token == "secret"
    monkeypatch.setenv("SIMSPOOL_TOKEN_FILE", str(tmp_path / "gone"))
    config = load_config()
    assert config.server_token is None
    assert "gone" in config.notes[0]


@pytest.mark.parametrize("name", ["simvue.toml", ".simvue.toml"])
def test_simvues_own_settings_are_used_when_ours_are_absent(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".simvue.ini").write_text("[server]\nurl = http://home-ini\ntoken = home%ini\n")
    assert (load_config().server_url, load_config().server_token) == ("http://home-ini", "home%ini")
    Path("simvue.ini").write_text("[server]\nurl = http://ini\n")
    assert (load_config().server_url, load_config().server_token) == ("http://ini", "home%ini")
    Path(name).write_text('[server]\nurl = "http://toml"\n[run]\ndescription = "theirs"\nmetadata = {a = 1}\n')
    config = load_config()
    assert config.server_url == "http://toml"
    assert config.run_defaults == {"description": "theirs", "metadata": {"a": 1}}
    monkeypatch.setenv("SIMVUE_URL", "http://env")
    monkeypatch.setenv("SIMVUE_TOKEN", "env")
    assert (load_config().server_url, load_config().server_token) == ("http://env", "env")
    Path(name).write_text("[broken")
    assert load_config().notes


def test_mistakes_are_named() -> None:
    Path("simspool.toml").write_text("[spool\n")
    with pytest.raises(ConfigError, match=r"simspool\.toml is not valid TOML"):
        load_config()
    Path("simspool.toml").write_text("[spool]\ndir = 5\n")
    with pytest.raises(ConfigError, match=r"\[spool\] dir"):
        load_config()
    Path("simspool.toml").write_text('[spool]\ndurability = "often"\n')
    with pytest.raises(ConfigError, match="lazy, interval, each"):
        Run(mode="offline").init("x")
    Path("simspool.toml").write_text('[spool]\nsegments = "stone"\n')
    with pytest.raises(ConfigError, match="mapped, file"):
        load_config()


def test_the_token_is_never_shown() -> None:
    config = load_config(server_token="canary-token", server_url="http://x")
    for text in (repr(config), str(config), f"{config}"):
        assert "canary" not in text

    class Secret:
        def get_secret_value(self) -> str:
            return "inner"

    assert load_config(server_token=Secret()).server_token == "inner"  # type: ignore[arg-type]


def test_defaults_of_new_runs(tmp_path: Path, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "spool"))
    Path("simspool.toml").write_text(
        '[run]\nname = "named by file"\nfolder = "/by/file"\ntags = ["f"]\ndescription = "d"\nmode = "offline"\n'
        'metadata = {team = "x", a = 0}\n'
    )
    with Run() as run:
        run.init(metadata={"a": 1})
        assert run.mode == "offline"
    record = found().only("run")
    assert (record["name"], record["folder"], record["tags"], record["description"]) == ("named by file", "/by/file", ["f"], "d")
    assert record["metadata"] == {"team": "x", "a": 1}
    with Run() as run:
        run.init("own", folder="/mine", tags=[])
    assert (found().only("run")["folder"], found().only("run")["tags"]) == ("/mine", [])
    Path("simspool.toml").write_text('[run]\nmode = "disabled"\n')
    with Run() as run:
        assert run.init("nothing") is True
        assert run.mode == "disabled"


def test_graces_of_an_abort_come_from_the_file(tmp_path: Path) -> None:
    assert load_config().graces == Graces(5.0, 60.0, 30.0)
    file = tmp_path / "simspool.toml"
    file.write_text("[abort]\nanswer_grace = 1\ncallback_grace = 600.5\nterm_grace = 0\n")
    assert load_config().graces == Graces(1.0, 600.5, 0.0)
    for wrong in ("-1", "nan", "inf", "true", '"5"'):
        file.write_text(f"[abort]\nterm_grace = {wrong}\n")
        with pytest.raises(ConfigError, match=r"\[abort\] term_grace in .*simspool.toml must be a number of seconds"):
            load_config()
