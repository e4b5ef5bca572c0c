"""The `[notify]` table of simspool.toml: which channels there are, and what each is told (docs/notifications.md)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simspool.agent.exit_codes import ExitCode
from simspool.spool import SpoolError

if TYPE_CHECKING:
    from simspool.sdk.config import Config

EVENTS = ("firing", "resolved", "ended")
FIELDS = ("id", "event", "subject", "alert", "run", "run_id", "folder", "status", "reason", "rule", "host", "time", "done", "repeated")
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_DEFAULT_ON = ("firing", "ended")
_PER_MINUTE = 20
_TLS = ("starttls", "implicit")
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_LONGEST = 3600.0


class InvalidNotify(SpoolError):
    """Raised for a `[notify]` table that cannot be used; the message names the file and the key."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True, slots=True)
class Channel:
    """What every channel has: its name, the events that it is told of, and how many messages a minute it takes at most (0: any number)."""

    name: str
    on: frozenset[str]
    per_minute: int


@dataclass(frozen=True, slots=True)
class Terminal(Channel):
    """A line on the agent's own stderr."""


@dataclass(frozen=True, slots=True)
class File(Channel):
    """Lines of JSON, appended to a file."""

    path: str


@dataclass(frozen=True, slots=True)
class Command(Channel):
    """A program, by argument vector; `timeout` is in seconds."""

    run: tuple[str, ...]
    timeout: float


@dataclass(frozen=True, slots=True)
class Mail(Channel):
    """Mail, by SMTP to `host`:`port`, or, where `sendmail` is a path, by that program. `timeout` (s) is for one message."""

    to: tuple[str, ...]
    sender: str | None
    host: str
    port: int
    sendmail: str | None
    tls: str | None
    user: str | None
    password_file: str | None
    ca_file: str | None
    timeout: float


class _Table:
    """A table's values, each checked; errors name file and key."""

    def __init__(self, values: Mapping[str, Any], name: str, path: str, keys: tuple[str, ...]) -> None:
        self._values, self.name, self._path = values, name, path
        for key in values:
            if key not in keys:
                raise self.wrong(f"there is no key {key!r}: use {', '.join(keys)}")

    def wrong(self, why: str) -> InvalidNotify:
        return InvalidNotify(f"[{self.name}] in {self._path or 'the configuration'}: {why}")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def text(self, key: str) -> str | None:
        value = self._values.get(key)
        if value is not None and (not isinstance(value, str) or not value or not value.isprintable()):
            raise self.wrong(f"{key} must be text on one line, not {value!r}"[:300])
        return value

    def texts(self, key: str, what: str) -> tuple[str, ...]:
        value = self._values.get(key)
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not value or not all(isinstance(v, str) and v and "\0" not in v for v in value):
            raise self.wrong(f"{key} must be {what}, not {value!r}"[:300])
        return tuple(value)

    def path(self, key: str) -> str | None:
        """Paths are relative to the file that names them."""
        value = self.text(key)
        return None if value is None else os.path.join(os.path.dirname(self._path) or os.getcwd(), os.path.expanduser(value))

    def seconds(self, key: str, default: float) -> float:
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LONGEST:
            raise self.wrong(f"{key} must be a number of seconds over 0, up to {_LONGEST:.0f}, not {value!r}")
        return float(value)

    def count(self, key: str, default: int) -> int:
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000:
            raise self.wrong(f"{key} must be a whole number from 1 to 10000, not {value!r}")
        return value

    def events(self, default: frozenset[str]) -> frozenset[str]:
        if "on" not in self._values:
            return default
        found = self.texts("on", f"a list of {', '.join(EVENTS)}")
        for event in found:
            if event not in EVENTS:
                raise self.wrong(f"on: {event!r} is not one of {', '.join(EVENTS)}")
        return frozenset(found)


def parse(table: Mapping[str, Any], path: str) -> tuple[Channel, ...]:
    """Return the channels of a `[notify]` table, which stands in the file `path`. An empty table has none. Raises InvalidNotify."""
    if not table:
        return ()
    top = _Table(table, "notify", path, ("on", "per_minute", *_CHANNELS))
    on, limit = top.events(frozenset(_DEFAULT_ON)), top.count("per_minute", _PER_MINUTE)
    found = [make(top, path, on, limit) for name, make in _CHANNELS.items() if name in top]
    channels = tuple(channel for channel in found if channel is not None)
    if not found:
        raise top.wrong(f"no channel is named: add one of {', '.join(_CHANNELS)}, for example `terminal = true`")
    return channels


def _sub(top: _Table, key: str, path: str, short: str, keys: tuple[str, ...]) -> _Table:
    """Return a channel's table; `file = "x"` is short for a table with `path`."""
    value = top.get(key)
    return _Table(value if isinstance(value, dict) else {short: value}, f"notify.{key}", path, keys)


def _terminal(top: _Table, path: str, on: frozenset[str], limit: int) -> Channel | None:
    value = top.get("terminal")
    if isinstance(value, bool):
        return Terminal("terminal", on, limit) if value else None
    if not isinstance(value, dict):
        raise top.wrong(f"terminal must be true or false, not {value!r}")
    table = _Table(value, "notify.terminal", path, ("on", "per_minute"))
    return Terminal("terminal", table.events(on), table.count("per_minute", limit))


def _file(top: _Table, path: str, on: frozenset[str], limit: int) -> Channel:
    table = _sub(top, "file", path, "path", ("path", "on"))
    found = table.path("path")
    if found is None:
        raise table.wrong('a path is needed: path = "/var/log/alerts.jsonl"')
    return File("file", table.events(on), 0, found)


def _command(top: _Table, path: str, on: frozenset[str], limit: int) -> Channel:
    table = _sub(top, "command", path, "run", ("run", "on", "per_minute", "timeout"))
    example = 'an argument vector: ["notify-send", "simspool", "{run}: {alert}"]'
    if isinstance(table.get("run"), str):
        raise table.wrong(f"run must be {example}: there is no shell that would take a command line apart")
    run = table.texts("run", example)
    for argument in run:
        for name in PLACEHOLDER.findall(argument):
            if name not in FIELDS:
                raise table.wrong(f"there is no field {{{name}}} for {argument!r}: use {', '.join(FIELDS)}")
    if PLACEHOLDER.search(run[0]):
        raise table.wrong(f"the program {run[0]!r} must be named as it is, without fields")
    return Command("command", table.events(on), table.count("per_minute", limit), run, table.seconds("timeout", 30.0))


def _mail(top: _Table, path: str, on: frozenset[str], limit: int) -> Channel:
    keys = ("to", "from", "smtp", "sendmail", "tls", "user", "password_file", "ca_file", "on", "per_minute", "timeout")
    if not isinstance(top.get("mail"), dict):
        raise top.wrong('mail must be a table: [notify.mail] with to = ["you@site"]')
    table = _Table(top.get("mail"), "notify.mail", path, keys)
    to, sender = table.texts("to", 'a list of addresses: ["you@site"]'), table.text("from")
    for address in (*to, *([sender] if sender else [])):
        if not address.isascii() or not address.isprintable() or any(c in address for c in ' ,;<>"\\') or address.startswith("-"):
            raise table.wrong(f"{address!r} is no plain address such as you@site")
    smtp, sendmail = table.text("smtp"), table.path("sendmail")
    if smtp and sendmail:
        raise table.wrong("give smtp or sendmail, not both")
    host, port = _host_port(table, smtp or "localhost:25")
    tls, user, password = table.text("tls"), table.text("user"), table.path("password_file")
    if tls is not None and tls not in _TLS:
        raise table.wrong(f"tls {tls!r} is not one of {', '.join(_TLS)}")
    if (user is None) != (password is None):
        raise table.wrong("user and password_file belong together: give both or none")
    if user is not None and tls is None and host not in _LOCAL:
        raise table.wrong(f'the password would go to {host} for all to read: add tls = "starttls"')
    return Mail(
        "mail", table.events(on), table.count("per_minute", limit), to, sender, host, port, sendmail, tls, user, password,
        table.path("ca_file"), table.seconds("timeout", 60.0),
    )  # fmt: skip


def _host_port(table: _Table, text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port:
        host, port = text, "25"
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or not re.fullmatch(r"[A-Za-z0-9_.:-]+", host):
        raise table.wrong(f"smtp must be HOST:PORT, not {text!r}")
    return host, int(port)


_CHANNELS: dict[str, Callable[[_Table, str, frozenset[str], int], Channel | None]] = {
    "terminal": _terminal, "file": _file, "command": _command, "mail": _mail,
}  # fmt: skip


class NotifySource:
    """The channels in force, read again on request. What became unusable leaves them as they were, and is reported.

    `load` returns the configuration. Raises InvalidNotify when it is made; `lenient` reports that too, and has no channels until then.
    """

    def __init__(self, load: Callable[[], Config], report: Callable[[str], None], *, lenient: bool = False) -> None:
        self._load, self._report = load, report
        self.channels: tuple[Channel, ...] = ()
        self.path = ""
        try:
            self.channels = self._read()
        except (SpoolError, ValueError) as error:
            if not lenient:
                raise
            report(f"{error}; nobody is told of alerts")

    def _read(self) -> tuple[Channel, ...]:
        config = self._load()
        path = config.sources.get("notify", "")
        channels = parse(config.notify, path)
        self.path = path
        return channels

    def refresh(self) -> None:
        """Read the configuration again."""
        try:
            self.channels = self._read()
        except (SpoolError, ValueError, OSError) as error:
            self._report(f"{error}; notifications stay as they were")
