"""The [notify] table: what it may say, and how it is told when it says something else."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from simspool.agent.exit_codes import code_of
from simspool.agent.notify.settings import Command, File, InvalidNotify, Mail, NotifySource, Terminal, parse
from simspool.sdk.config import Config, load_config

WHERE = "/etc/site/simspool.toml"


def test_every_channel_is_read() -> None:
    table = tomllib.loads("""
        on = ["firing", "resolved"]
        per_minute = 5
        terminal = true
        file = "alerts.jsonl"
        command = ["notify-send", "{run}: {alert}"]
        [mail]
        to = ["a@site", "b@site"]
        on = ["ended"]
        smtp = "mail.site:2525"
        tls = "starttls"
        user = "me"
        password_file = "/etc/password"
    """)
    terminal, file, command, mail = parse(table, WHERE)
    both = frozenset({"firing", "resolved"})
    assert terminal == Terminal("terminal", both, 5)
    assert file == File("file", both, 0, "/etc/site/alerts.jsonl")
    assert command == Command("command", both, 5, ("notify-send", "{run}: {alert}"), 30.0)
    expected = Mail(
        "mail", frozenset({"ended"}), 5, ("a@site", "b@site"), None, "mail.site", 2525, None, "starttls", "me", "/etc/password", None, 60.0
    )
    assert mail == expected


def test_channels_that_have_options_are_tables() -> None:
    found = parse({"terminal": {"on": ["resolved"]}, "file": {"path": "/x", "on": ["ended"]}, "command": {"run": ["x"], "timeout": 3}}, "")
    assert [sorted(channel.on) for channel in found] == [["resolved"], ["ended"], ["ended", "firing"]]


def test_no_table_is_no_channel_and_false_is_none() -> None:
    assert parse({}, WHERE) == ()
    assert parse({"terminal": False}, WHERE) == ()


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"tty": True}, "[notify] in /etc/site/simspool.toml: there is no key 'tty'"),
        ({"on": ["firing"]}, "no channel is named"),
        ({"terminal": True, "on": ["fired"]}, "'fired' is not one of firing, resolved, ended"),
        ({"terminal": True, "per_minute": 0}, "per_minute must be a whole number"),
        ({"terminal": "yes"}, "terminal must be true or false"),
        ({"command": "mail -s x"}, "no shell"),
        ({"command": ["say", "{run.__class__}", "{user}"]}, "there is no field {user}"),
        ({"command": ["{run}"]}, "named as it is"),
        ({"command": {"run": ["x"], "timeout": -1}}, "[notify.command] in /etc/site/simspool.toml: timeout must be"),
        ({"file": {}}, "a path is needed"),
        ({"file": 3}, "path must be text"),
        ({"mail": "me@site"}, "mail must be a table"),
        ({"mail": {"smtp": "localhost"}}, "to must be a list of addresses"),
        ({"mail": {"to": ["a@b\r\nBcc: c@d"]}}, "no plain address"),
        ({"mail": {"to": ["-oQ/tmp"]}}, "no plain address"),
        ({"mail": {"to": "a@b", "smtp": "h:99999"}}, "smtp must be HOST:PORT"),
        ({"mail": {"to": "a@b", "smtp": "h", "sendmail": "/x"}}, "not both"),
        ({"mail": {"to": "a@b", "user": "me"}}, "belong together"),
        ({"mail": {"to": "a@b", "smtp": "far", "user": "me", "password_file": "p"}}, "for all to read"),
        ({"mail": {"to": "a@b", "tls": "yes"}}, "tls 'yes' is not one of"),
        ({"mail": {"to": "a@b", "subject": "x"}}, "[notify.mail] in /etc/site/simspool.toml: there is no key 'subject'"),
    ],
)
def test_what_cannot_be_used_is_told_with_file_and_key(table: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidNotify) as caught:
        parse(table, WHERE)
    assert says in str(caught.value)
    assert code_of(caught.value) == 2


def test_the_table_is_found_in_simspool_toml_and_read_again(tmp_path: Path) -> None:
    path, said = tmp_path / "simspool.toml", []
    path.write_text('[notify]\nfile = "a.jsonl"\n')

    def load() -> Config:
        return load_config(folder=str(tmp_path), environ={"HOME": str(tmp_path)})

    source = NotifySource(load, said.append)
    assert [channel.path for channel in source.channels if isinstance(channel, File)] == [str(tmp_path / "a.jsonl")]
    path.write_text("[notify]\nterminal = true\n")
    source.refresh()
    assert [channel.name for channel in source.channels] == ["terminal"]
    path.write_text("[notify]\nterminal = 3\n")
    source.refresh()
    assert [channel.name for channel in source.channels] == ["terminal"]
    assert "stay as they were" in said[0]
    with pytest.raises(InvalidNotify):
        NotifySource(load, said.append)
    assert NotifySource(load, said.append, lenient=True).channels == ()
