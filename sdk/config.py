"""Where the spool is, which server there is, and the defaults of new runs.

Looked up in this order, the first that answers counts, for each setting by itself:

- spool: the argument, SIMSPOOL_DIR, `[spool] dir` in simspool.toml, `$XDG_DATA_HOME/simspool` (`~/.local/share/simspool`).
- server: the arguments, SIMSPOOL_URL with SIMSPOOL_TOKEN or SIMSPOOL_TOKEN_FILE, `[server] url, token, token_file` in
simspool.toml, then what
  the `simvue` package would use: SIMVUE_URL and SIMVUE_TOKEN, simvue.toml, simvue.ini, ~/.simvue.ini.
- the way to the server: `[server] ca_file, client_cert, client_key, proxy, proxy_auth_file`, or SIMSPOOL_CA_FILE and so on.
- what is kept out of what is captured: the `[redact]` table; what may leave the site: the `[leaving]` table (docs/security.md).
- whether an agent is started where none serves the spool: the argument, SIMSPOOL_AGENT, `[agent] start` in simspool.toml; "auto" or "off".
- a file of alerts for all runs: `agent run --alerts`, SIMSPOOL_ALERTS, `[agent] alerts` in simspool.toml (docs/alerts.md).
- the country whose electricity counts for emissions (ISO 3166, "DEU"): SIMSPOOL_COUNTRY, `[emissions] country` in simspool.toml.
- by which key bundles are signed, and whose are taken: the `[bundle]` table of simspool.toml (docs/bundles.md).
- where bundles go by themselves, and from where they come: the `[relay]` table of simspool.toml (docs/relay.md).
- further targets beside the server: the `[target.NAME]` tables of simspool.toml (docs/targets.md).
- whom the agent tells of alerts: the `[notify]` table of simspool.toml (docs/notifications.md).
- how much a spool may take: the `[budget]` table of simspool.toml, and SIMSPOOL_BUDGET_* for each of its keys (docs/budgets.md).
- graces of an abort: `[abort] answer_grace, callback_grace, term_grace` in simspool.toml, in seconds.
- defaults of `Run.init`: `[run] name, description, tags, folder, metadata, mode` in simspool.toml, else in simvue.toml.

A toml file is searched from the working folder upwards, then in the home folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from simspool.spool import Durability

from .budget import Budget, load_budget
from .errors import ConfigError
from .secret_files import KEYRING, check_private, read_secret
from .way import Way, way_of_server

_RUN_KEYS = ("name", "description", "tags", "folder", "metadata", "mode")
_SEGMENTS = ("mapped", "file")
AGENT = ("auto", "off")
_LONGEST_GRACE = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Graces:
    """How long (s) a process may take to answer an abort request, for its callback, and to end after SIGTERM."""

    answer: float = 5.0
    callback: float = 60.0
    term: float = 30.0


@dataclass(frozen=True, slots=True, repr=False)
class Config:
    """The settings in force. The token is never shown by `repr`.

    `segments`: "mapped", "file" or None (by file system). `agent`: "auto" or "off". `alerts`: the file of a site's alerts. `country`: three
    letters, or None. `notify`, `targets`, `redact`, `leaving`, `bundle`, `relay`: the tables as they are in the file. `sources` tells per
    setting where it came from; `notes` what was found and could not be used; `concerns` what can be used and is not safe. A token that
    begins with "keyring:" is the name of one.
    """

    spool_dir: str
    server_url: str | None = None
    server_token: str | None = None
    server_way: Way = field(default_factory=Way)
    durability: Durability = Durability.INTERVAL
    segments: str | None = None
    agent: str = "auto"
    alerts: str | None = None
    graces: Graces = Graces()
    budget: Budget = field(default_factory=Budget)
    country: str | None = None
    notify: Mapping[str, Any] = field(default_factory=dict)
    targets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    redact: Mapping[str, Any] = field(default_factory=dict)
    leaving: Mapping[str, Any] = field(default_factory=dict)
    bundle: Mapping[str, Any] = field(default_factory=dict)
    relay: Mapping[str, Any] = field(default_factory=dict)
    run_defaults: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    concerns: tuple[str, ...] = ()

    def __repr__(self) -> str:
        token = "set" if self.server_token else "not set"
        return f"Config(spool_dir={self.spool_dir!r}, server_url={self.server_url!r}, server_token=<{token}>)"


def load_config(
    *,
    spool: str | os.PathLike[str] | None = None,
    server_url: str | None = None,
    server_token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    agent: str | None = None,
    folder: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Return the settings in force for this working folder (or `folder`) and environment. Arguments win.

    Raises ConfigError for a simspool.toml that cannot be read, for a durability, segments or agent setting that does not exist, and for an
    address with a user or password in it. Other tools' files, and a token file that cannot be read or that anybody can, only leave a note:
    recording needs neither.
    """
    env = os.environ if environ is None else environ
    home = env.get("HOME") or os.path.expanduser("~")
    start = folder or _working_folder(home)
    notes: list[str] = []
    own_path, own = _own_file(start, home)
    look = _Lookup(own, own_path, notes)
    sources: dict[str, str] = {}

    spool_dir, sources["spool"] = look.first(
        (os.fspath(spool) if spool is not None else None, "argument"),
        (env.get("SIMSPOOL_DIR"), "SIMSPOOL_DIR"),
        (_beside(own_path, look.own_text("spool", "dir"), home), own_path),
    )
    if not spool_dir:
        data = env.get("XDG_DATA_HOME") or os.path.join(home, ".local", "share")
        spool_dir, sources["spool"] = os.path.join(data, "simspool"), "default"
    durability, where = look.first(
        (env.get("SIMSPOOL_DURABILITY"), "SIMSPOOL_DURABILITY"), (look.own_text("spool", "durability"), own_path)
    )
    segments, origin = look.first((env.get("SIMSPOOL_SEGMENTS"), "SIMSPOOL_SEGMENTS"), (look.own_text("spool", "segments"), own_path))
    if segments is not None and segments not in _SEGMENTS:
        raise ConfigError(f"segments {segments!r} ({origin}) is not one of {', '.join(_SEGMENTS)}")
    start_agent, origin = look.first(
        (agent, "argument"), (env.get("SIMSPOOL_AGENT"), "SIMSPOOL_AGENT"), (look.own_text("agent", "start"), own_path)
    )
    if start_agent is not None and start_agent not in AGENT:
        raise ConfigError(f"agent {start_agent!r} ({origin}) is not one of {', '.join(AGENT)}")

    alerts, sources["alerts"] = look.first(
        (env.get("SIMSPOOL_ALERTS"), "SIMSPOOL_ALERTS"), (_beside(own_path, look.own_text("agent", "alerts"), home), own_path)
    )

    country, sources["country"] = look.first(
        (env.get("SIMSPOOL_COUNTRY"), "SIMSPOOL_COUNTRY"), (look.own_text("emissions", "country"), own_path)
    )

    foreign = _Foreign(start, home, notes)
    url, sources["url"] = look.first(
        (server_url, "argument"),
        (env.get("SIMSPOOL_URL"), "SIMSPOOL_URL"),
        (look.own_text("server", "url"), own_path),
        (env.get("SIMVUE_URL"), "SIMVUE_URL"),
        *foreign.values("url"),
    )
    if url is not None:
        from .address import check_address, hide

        if url != hide(url):
            if sources["url"] not in {"argument", "SIMSPOOL_URL", own_path}:
                notes.append(f"the address in {sources['url']} is not used: it has a user, password or query in it")
                url = None
            else:
                check_address(url, sources["url"])
    token, sources["token"] = look.first(
        (_secret(server_token), "argument"),
        (look.token_in(os.fspath(token_file) if token_file is not None else None), "argument"),
        (env.get("SIMSPOOL_TOKEN"), "SIMSPOOL_TOKEN"),
        (look.token_in(env.get("SIMSPOOL_TOKEN_FILE")), "SIMSPOOL_TOKEN_FILE"),
        (look.own_token(), own_path),
        (look.token_in(_beside(own_path, look.own_text("server", "token_file"), home)), own_path),
        (env.get("SIMVUE_TOKEN"), "SIMVUE_TOKEN"),
        *foreign.values("token"),
    )
    sources["notify"] = own_path if own.get("notify") else ""
    targets = own.get("target") or {}
    if not isinstance(targets, dict) or not all(isinstance(t, dict) for t in targets.values()):
        raise ConfigError(f"[target] in {own_path} must hold a table for each target: [target.NAME]")
    sources["targets"] = own_path if targets else ""
    sources["bundle"] = own_path if own.get("bundle") else ""
    sources["relay"] = own_path if own.get("relay") else ""
    redact = look.table("redact")
    if redact:
        from .redaction import Redactor

        Redactor.of(redact)  # what cannot be used is known now, and not when something is captured
    defaults = own.get("run") or foreign.toml.get("run") or {}
    return Config(
        spool_dir=os.path.abspath(_expand(spool_dir, home)),
        server_url=url.rstrip("/") if url else None,
        server_token=token.strip() if token else None,
        server_way=way_of_server(look.table("server"), own_path, env, start, home),
        durability=_durability(durability, where),
        segments=segments,
        agent=start_agent or "auto",
        alerts=os.path.abspath(_expand(alerts, home)) if alerts else None,
        graces=look.graces(),
        budget=load_budget(look.table("budget"), own_path, env),
        country=country,
        notify=look.table("notify"),
        targets=targets,
        redact=redact,
        leaving=look.table("leaving"),
        bundle=look.table("bundle"),
        relay=look.table("relay"),
        run_defaults={k: defaults[k] for k in _RUN_KEYS if k in defaults} if isinstance(defaults, dict) else {},
        sources={k: v for k, v in sources.items() if v},
        notes=tuple(notes),
        concerns=tuple(look.concerns),
    )


class _Lookup:
    """simspool.toml, and what could not be used of it."""

    def __init__(self, own: dict[str, Any], own_path: str, notes: list[str]) -> None:
        self._own, self._own_path, self._notes = own, own_path, notes
        self.concerns: list[str] = []

    @staticmethod
    def first(*found: tuple[str | None, str]) -> tuple[str | None, str]:
        """Return the first value that is there, and its source."""
        return next(((value, source) for value, source in found if value), (None, ""))

    def own_text(self, section: str, key: str) -> str | None:
        """Return a text setting of simspool.toml."""
        table = self._own.get(section, {})
        value = table.get(key) if isinstance(table, dict) else None
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"[{section}] {key} in {self._own_path} must be text, not {value!r}")
        return value

    def table(self, section: str) -> Mapping[str, Any]:
        """Return a table of simspool.toml."""
        found = self._own.get(section, {})
        if not isinstance(found, dict):
            raise ConfigError(f"[{section}] in {self._own_path} must be a table, not {found!r}")
        return found

    def graces(self) -> Graces:
        """Return the `[abort]` table of simspool.toml."""
        table = self._own.get("abort", {})
        found = {}
        for part in ("answer", "callback", "term"):
            value = table.get(f"{part}_grace") if isinstance(table, dict) else None
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LONGEST_GRACE:
                raise ConfigError(
                    f"[abort] {part}_grace in {self._own_path} must be a number of seconds from 0 to {_LONGEST_GRACE:.0f}, not {value!r}"
                )
            found[part] = float(value)
        return Graces(**found)

    def token_in(self, path: str | None) -> str | None:
        """Return the token in a file."""
        if not path:
            return None
        try:
            found, concern = read_secret(path)
        except ConfigError as error:
            self._notes.append(str(error))
            return None
        if concern:
            self.concerns.append(concern)
        return found

    def own_token(self) -> str | None:
        """Return the token that stands in simspool.toml itself."""
        found = self.own_text("server", "token")
        if found is None or found.startswith(KEYRING):
            return found
        try:
            concern = check_private(self._own_path, "[server] token in")
        except ConfigError as error:  # the file's other settings hold all the same
            self._notes.append(str(error))
            return None
        if concern:
            self.concerns.append(concern)
        return found


class _Foreign:
    """The simvue package's own files; what does not parse is noted and left out."""

    def __init__(self, start: str, home: str, notes: list[str]) -> None:
        self.toml: dict[str, Any] = {}
        self._toml_path = ""
        self._ini: list[tuple[str, Any]] = []
        for name in ("simvue.toml", ".simvue.toml"):
            path = _find(start, home, name)
            if path is not None:
                try:
                    self.toml, self._toml_path = _read_toml(path), path
                except ConfigError as error:
                    notes.append(str(error))
                break
        for path in (os.path.join(start, "simvue.ini"), os.path.join(home, ".simvue.ini")):
            if os.path.isfile(path):
                import configparser

                parser = configparser.ConfigParser(interpolation=None)
                try:
                    parser.read(path, encoding="utf-8")
                except (configparser.Error, OSError, UnicodeDecodeError) as error:
                    notes.append(f"{path} cannot be read: {str(error).splitlines()[0]}")
                else:
                    self._ini.append((path, parser))

    def values(self, key: str) -> Iterator[tuple[str | None, str]]:
        """Yield what the files say of a server's url or token, with their paths."""
        server = self.toml.get("server", {})
        value = server.get(key) if isinstance(server, dict) else None
        yield (value if isinstance(value, str) else None), self._toml_path
        for path, parser in self._ini:
            yield parser.get("server", key, fallback=None), path


def _secret(value: Any) -> str | None:
    """Return a token's text; the published API gives it as a pydantic SecretStr."""
    reveal = getattr(value, "get_secret_value", None)
    return str(reveal()) if callable(reveal) else value


def _working_folder(home: str) -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted under us
        return home


def _find(start: str, home: str, name: str) -> str | None:
    at = os.path.abspath(start)
    while True:
        path = os.path.join(at, name)
        if os.path.isfile(path):
            return path
        parent = os.path.dirname(at)
        if parent == at:
            break
        at = parent
    path = os.path.join(home, name)
    return path if os.path.isfile(path) else None


def _read_toml(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as f:
            return tomllib.load(f)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _own_file(start: str, home: str) -> tuple[str, dict[str, Any]]:
    path = _find(start, home, "simspool.toml")
    return (path, _read_toml(path)) if path is not None else ("", {})


def _expand(path: str, home: str) -> str:
    return home + path[1:] if path == "~" or path.startswith("~/") else path


def _beside(own_path: str, value: str | None, home: str) -> str | None:
    """Paths in simspool.toml are relative to that file."""
    return os.path.join(os.path.dirname(own_path), _expand(value, home)) if value else None


def _durability(name: str | None, where: str) -> Durability:
    if name is None:
        return Durability.INTERVAL
    try:
        return Durability[name.upper()]
    except KeyError:
        raise ConfigError(f"durability {name!r} ({where}) is not one of lazy, interval, each") from None
