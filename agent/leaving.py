"""What leaves the site: runs are searched for secrets before they are packed, and a log says what was found and what was decided.

The search is a net, not a proof: it knows the shapes of well-known tokens and keys, and names that say secret (sdk/redaction.py). Nothing
is changed: what is recorded stays as it is, and either leaves so or does not.
"""

from __future__ import annotations

import fnmatch
import json
import os
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from simspool.agent.catalog import Catalog
from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.sdk.errors import ConfigError
from simspool.sdk.redaction import REDACTED, Redactor
from simspool.spool import Kind, RunFolder, Spool, SpoolError, Tail, blobs, layout
from simspool.spool.frames import Record

VERDICTS = ("warn", "refuse", "off")
_LARGEST_FILE = 4 << 20  # bytes of a text file that is searched
_BLOCK = 256 << 10
_MOST = 100  # findings that are listed of one run
_KINDS = frozenset({
    Kind.RUN, Kind.ATTACH, Kind.EVENT, Kind.ARTIFACT, Kind.METADATA, Kind.TAGS, Kind.STATUS, Kind.PROCESS_START, Kind.PROCESS_EXIT,
    Kind.ABORT, Kind.CLOSE,
})  # fmt: skip
_ALLOWS = ("run", "folder", "tag", "artifact")


@dataclass(frozen=True, slots=True)
class Found:
    """A secret, as it seems, and where it is; never the secret itself."""

    run: str
    name: str
    where: str
    what: str


@dataclass(frozen=True, slots=True)
class LeavingSettings:
    """The `[leaving]` table: what follows from a finding, which ones are known and accepted, and which runs may leave at all.

    `allow` and `only` hold "run:GLOB" (id or name), "folder:GLOB", "tag:GLOB"; `allow` also "artifact:GLOB".
    """

    secrets: str = "warn"
    allow: tuple[tuple[str, str], ...] = ()
    only: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> LeavingSettings:
        """Read the table. Raises ConfigError."""
        for key in table:
            if key not in {"secrets", "allow", "only"}:
                raise ConfigError(f"[leaving] has no setting {key!r}; there are secrets, allow and only")
        verdict = table.get("secrets", "warn")
        if verdict not in VERDICTS:
            raise ConfigError(f"[leaving] secrets = {verdict!r} is not one of {', '.join(VERDICTS)}")
        return cls(verdict, _globs(table, "allow", _ALLOWS), _globs(table, "only", _ALLOWS[:-1]))


def _globs(table: Mapping[str, Any], key: str, kinds: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    given = table.get(key, [])
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise ConfigError(f"[leaving] {key} must be a list of texts")
    found = []
    for text in given:
        kind, colon, glob = text.partition(":")
        if not colon or not glob or kind not in kinds:
            raise ConfigError(f'[leaving] {key}: {text!r} is not "{":GLOB", "".join(kinds)}:GLOB"')
        found.append((kind, glob))
    return tuple(found)


@dataclass(slots=True)
class _About:
    run: str
    name: str = ""
    folder: str = "/"
    tags: list[str] = field(default_factory=list)

    def meets(self, globs: Collection[tuple[str, str]]) -> bool:
        values = {"run": [self.run, self.name], "folder": [self.folder], "tag": self.tags}
        return any(fnmatch.fnmatchcase(value, glob) for kind, glob in globs for value in values.get(kind, ()))


class Hint:
    """Says quickly of bytes, text or its JSON, that nothing the redactor finds can be in them: most of what is recorded is like that.

    It passes much that is no secret, and nothing that is one: each alternative is wider than what it stands for in sdk/redaction.py.
    """

    def __init__(self, redactor: Redactor) -> None:
        import re2

        own = "".join(f"|{re2.escape(prefix)}" for prefix in redactor.prefixes)
        self._pattern = None if redactor.names else re2.compile((_ANY + own).encode())

    def passes(self, data: bytes) -> bool:
        """Say whether something may be in there."""
        return self._pattern is None or self._pattern.search(data) is not None


_WITHIN = r"[_.\-]*"  # names may be cut into words
_WORDS = "|".join((
    _WITHIN.join("passw"), _WITHIN.join("key"), "passphrase", "passcode", "secret", "credential", "token", "auth", "bearer", "cookie",
    "sig", "pat",
))  # fmt: skip
_ESCAPE = r"\\[a-z]|\\u[0-9a-f]{4}"  # as JSON has it
_BEGIN = rf"(?:^|[^A-Za-z0-9_\-]|{_ESCAPE})"
_REST = r"[A-Za-z0-9_.\-]*"
_ANY = "|".join((
    r"[A-Za-z0-9+.-]://[^/\s\"'<>?#]+@", "PRIVATE KEY",
    rf"(?i:(?:{_WORDS}){_REST}(?:{_ESCAPE}|[^A-Za-z0-9=:]){{0,24}}[=:])",
    rf"(?i:-{_REST}(?:{_WORDS}){_REST}(?:{_ESCAPE}|[^!-~]))",
    rf'(?i:(?:{_WORDS})(?:[^"\\]|\\.)*":)',  # the key of metadata may be any text
    rf"{_BEGIN}(?:eyJ|A[KS]IA|AIza|gh[pousr]_|gl[a-z]{{2,4}}-|xox[abeoprs]-|hf_|npm_)[A-Za-z0-9_-]{{8}}",
    rf"{_BEGIN}(?:github_pat_|pypi-|[sr]k[-_])[A-Za-z0-9_-]{{20}}",
))  # fmt: skip


class Search:
    """Looks through runs. Confined to one thread. `turn` is called now and then."""

    def __init__(self, spool: Spool, settings: LeavingSettings, redactor: Redactor, turn: Callable[[], None] = lambda: None) -> None:
        self._spool, self._settings, self._redactor, self._turn = spool, settings, redactor, turn
        self._hint = Hint(redactor)
        self._files: dict[str, list[tuple[str, str]]] = {}  # digest -> (place, what): one content is looked at once
        self.left_out = 0  # findings beyond those that are listed

    def run(self, about: _About) -> list[Found]:
        """Return what is found in a run."""
        folder = self._spool.run(about.run)
        found: list[Found] = []
        for where, what in self._places(folder):
            if len(found) < _MOST:
                found.append(Found(about.run, about.name, where, what))
            else:
                self.left_out += 1
        return found

    def _places(self, folder: RunFolder) -> Iterator[tuple[str, str]]:
        seen: set[tuple[str, str]] = set()
        for writer in folder.writer_ids():
            self._turn()
            try:
                if not self._may_tell(folder.writer(writer)):
                    continue
                with Tail(folder.writer(writer), folder.id) as tail:
                    for chunk in tail.read():
                        for item in chunk.items:
                            if isinstance(item, Record) and item.kind in _KINDS and isinstance(item.body, dict):
                                new = [place for place in self._record(folder, item) if place not in seen]
                                seen.update(new)
                                yield from new
            except (OSError, SpoolError) as error:
                yield f"writer {writer}", f"it could not be looked at: {getattr(error, 'strerror', None) or error}"

    def _may_tell(self, writer: str) -> bool:
        """Say whether a writer's segments may hold a secret, or name a file."""
        for segment in layout.segments(writer):
            fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                data = os.pread(fd, os.fstat(fd).st_size, 0)
            finally:
                os.close(fd)
            if b'"digest":' in data or self._hint.passes(data):
                return True
        return False

    def _record(self, folder: RunFolder, record: Record) -> Iterator[tuple[str, str]]:
        body, label = record.body or {}, Kind(record.kind).label
        where = f"{label} (record {record.seq})"
        if record.kind == Kind.ARTIFACT:
            name = str(body.get("name"))
            if any(kind == "artifact" and fnmatch.fnmatchcase(name, glob) for kind, glob in self._settings.allow):
                return
            where = f"file {name!r}"
            yield from ((f"{where}, {place}", what) for place, what in self._content(folder, str(body.get("digest"))))
        for path, value in _texts(body):
            if path[0] == "metadata" or record.kind == Kind.METADATA:
                name = path[-1]
                if self._redactor.value(name, value) == REDACTED and value != REDACTED:
                    yield f"metadata {name!r}", f"value of {name[:40]}"
                    continue
            if self._hint.passes(value.encode(errors="replace")):
                spans = self._redactor.find(value)
                yield from ((where, span.what) for span in spans if _is_likely(value[span.start : span.end], span.what))

    def _content(self, folder: RunFolder, digest: str) -> list[tuple[str, str]]:
        known = self._files.get(digest)
        if known is None:
            known = self._files[digest] = list(self._look_into(blobs.path_of(self._spool, folder, digest)))
        return known

    def _look_into(self, path: str | None) -> Iterator[tuple[str, str]]:
        self._turn()
        try:
            if path is None or not stat.S_ISREG(os.lstat(path).st_mode) or os.lstat(path).st_size > _LARGEST_FILE:
                return
            with open(path, "rb") as file:
                head = file.read(_BLOCK)
                if b"\0" in head:
                    return
                data = head + file.read(_LARGEST_FILE)
        except OSError:
            return  # the bundle itself says what cannot be read
        if not self._hint.passes(data):
            return
        text, line = data.decode(errors="replace"), 1
        for at in range(0, len(text), _BLOCK):
            block = text[at : at + _BLOCK + 4096]  # what lies across two blocks is seen whole in the first
            for span in self._redactor.find(block):
                if span.start < _BLOCK and _is_likely(block[span.start : span.end], span.what):
                    yield f"line {line + block.count(chr(10), 0, span.start)}", span.what
            line += text.count("\n", at, at + _BLOCK)


def _texts(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, str):
        yield path or ("",), value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, (*path, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, path or ("",))


def _is_likely(secret: str, what: str) -> bool:
    """Say whether what a name announces looks like one: texts are full of `token = next(tokens)`."""
    if not what.startswith("value of"):
        return True
    plain = all(c.isalnum() or c in "_-+/=.:~!@#$%^&*" for c in secret)
    return len(secret) >= 8 and plain and any(c.isdigit() for c in secret) and any(c.isalpha() for c in secret)


def check(
    spool: Spool, catalog: Catalog, runs: Collection[str], settings: LeavingSettings | None = None, redactor: Redactor | None = None,
    turn: Callable[[], None] = lambda: None,
) -> list[Found]:  # fmt: skip
    """Return what seems secret in these runs: in their names, metadata, events, commands and text files up to 4 MiB."""
    settings = settings or LeavingSettings()
    search, found = Search(spool, settings, redactor or Redactor(), turn), []
    for about in _about(spool, catalog, runs):
        if not about.meets(settings.allow):
            found += search.run(about)
    return found


def _about(spool: Spool, catalog: Catalog, runs: Collection[str]) -> Iterator[_About]:
    rows = {run: row for run, *row in catalog.rows("SELECT id, name, folder, tags FROM runs") if run in runs}
    for run in sorted(runs):
        name, folder, tags = rows.get(run, (None, None, None))
        yield _About(run, name or str(spool.run(run).info().get("name") or ""), folder or "/", json.loads(tags) if tags else [])


def before_leaving(
    spool: Spool, catalog: Catalog, runs: Collection[str], table: Mapping[str, Any], redact: Mapping[str, Any], what: str,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Let runs leave the site, or not: by the `[leaving]` table; the decision is logged first, in the spool's agent/leaving.jsonl.

    `what` is what they leave in. Raises CommandError for runs that may not leave, and for secrets where the table says "refuse".
    """
    try:
        settings, redactor = LeavingSettings.of(table), Redactor.of(redact)
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    strangers = [a for a in _about(spool, catalog, runs) if settings.only and not a.meets(settings.only)]
    found = [] if settings.secrets == "off" or strangers else check(spool, catalog, runs, settings, redactor)
    refused = bool(strangers) or (bool(found) and settings.secrets == "refuse")
    _log(spool, {
        "at": time.time(), "uid": os.geteuid(), "what": what, "secrets": settings.secrets, "runs": sorted(runs),
        "verdict": "refused" if refused else "left", "not_allowed": [a.run for a in strangers], "found": [asdict(one) for one in found],
    })  # fmt: skip
    for one in found:
        say(f"looks like a secret: {one.what}, in {one.where} of run {one.run} ({one.name})")
    if strangers:
        listed = ", ".join(f"{a.run} ({a.name})" for a in strangers[:5])
        raise CommandError(ExitCode.ERROR, f"{len(strangers)} runs may not leave by [leaving] only: {listed}: name the runs that may")
    if refused:
        raise CommandError(
            ExitCode.ERROR,
            f'nothing left: {len(found)} places look like secrets, and [leaving] secrets is "refuse": leave these runs out, or name what'
            " may leave in [leaving] allow",
        )  # fmt: skip


def _log(spool: Spool, line: Mapping[str, Any]) -> None:
    path = os.path.join(spool.agent, "leaving.jsonl")
    text = json.dumps(line, ensure_ascii=True) + "\n"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise CommandError(ExitCode.SPOOL_UNUSABLE, f"nothing left: {path} cannot be written: {error.strerror}") from None
