"""The common checker: after any fault, what the scripts' calls said is compared with the spool and the server (I1-I8, DESIGN 3).

The spool is read with the format's own reader; the server is asked through its API, and its database is looked into for what only that
knows: marks and chains, declared gaps, rows by identity.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from real_server import RealServer
from trials import Said, Script, Stage

from simspool.spool import Kind, Spool, SpoolError, frames, open_spool
from simspool.spool.frames import MetricBatch
from simspool.spool.reader import Tail, read_drop_counts


@dataclass
class Found:
    """What the spool has of one run."""

    metrics: Counter[int] = field(default_factory=Counter)
    events: Counter[int] = field(default_factory=Counter)
    files: dict[str, str] = field(default_factory=dict)
    chains: dict[str, list[int]] = field(default_factory=dict)  # by writer: chain after record 0, 1, 2 ...
    dropped: int = 0
    damage: list[str] = field(default_factory=list)


def read_run(spool: Spool, run: str) -> Found:
    """Read everything that the spool has of a run."""
    found, folder = Found(), spool.run(run)
    for writer in folder.writer_ids():
        chain, chains = 0, [0]
        found.chains[writer] = chains
        with Tail(folder.writer(writer), run) as tail:
            for chunk in tail.read(dead=True):
                found.damage += [f"{d.kind} in segment {d.segment} of {writer}" for d in chunk.damage if d.kind != "torn"]
                parts: list[tuple[int, Any]] = [(item.first, item) for item in chunk.items]
                parts += [(first, (first, last)) for first, last, _ in chunk.gaps]
                for _, item in sorted(parts, key=lambda p: p[0]):
                    if isinstance(item, tuple):
                        for _ in range(item[1] - item[0] + 1):
                            chain = frames.extend_chain_gap(chain, 1)
                            chains.append(chain)
                        continue
                    for crc in item.crcs if isinstance(item, MetricBatch) else [item.crc]:
                        chain = frames.extend_chain(chain, (crc,))
                        chains.append(chain)
                    _note(found, item)
        try:
            found.dropped += sum(read_drop_counts(folder.writer(writer)).values())
        except (OSError, SpoolError) as error:
            found.damage.append(f"drop counters of {writer}: {error}")
    return found


def _note(found: Found, item: Any) -> None:
    if isinstance(item, MetricBatch):
        if item.kind == Kind.METRICS and "n" in item.shape.names:
            found.metrics.update(int(item.values(row)["n"]) for row in item.rows)
    elif item.kind == Kind.EVENT:
        word = str((item.body or {}).get("message", "")).split(" ")[0]
        if word.isdigit():
            found.events[int(word)] += 1
    elif item.kind == Kind.ARTIFACT:
        found.files[str((item.body or {}).get("name"))] = str((item.body or {}).get("digest"))


def check_scripts(scripts: Sequence[Script]) -> list[str]:
    """I6: what was not killed ended by itself, with code 0 and no traceback."""
    out = []
    for script in scripts:
        errors = script.errors.read_text(errors="replace")
        if "Traceback" in errors:
            out.append(f"I6: a script said a traceback: {errors[-400:]}")
        if not script.killed and (script.process.poll() != 0 or not script.said.ended):
            out.append(f"I6: a script ended with {script.process.poll()}: {errors[-300:]}")
    return out


def check_spool(path: Path, saids: Sequence[Said], *, damaged: bool = False) -> list[str]:
    """I1, I2, I4, I5, I7 as far as the spool alone can tell: for trials without a server, and for those that did not drain."""
    try:
        spool = open_spool(path)
    except SpoolError as error:
        return [f"I1: the spool cannot be opened: {error}"] if any(s.run for s in saids) else []
    out: list[str] = []
    for said in (s for s in saids if s.run):
        if not os.path.isdir(spool.run(said.run).path):
            out.append(f"I7: run {said.run} is gone from the spool")
            continue
        found = read_run(spool, said.run)
        out += _compare(said, found.metrics, found.events, set(found.files), "spool")
        out += _compare_drops(said, found)
        if found.damage and not damaged:
            out.append(f"I1: damage where none was done: {found.damage[:3]}")
        out += _check_blobs(spool, said.run, found)
    return out


def _compare(said: Said, metrics: Counter[int], events: Counter[int], files: set[str], where: str) -> list[str]:
    out = []
    for kind, have in (("metrics", metrics), ("event", events)):
        lost = [n for n in said.yes[kind] if int(n) not in have]
        if lost:
            out.append(f"I1: {len(lost)} of {len(said.yes[kind])} {kind} calls that returned True are not in the {where}: {lost[:5]}")
        twice = [n for n, count in have.items() if count > 1]
        if twice:
            out.append(f"I2: {len(twice)} {kind} records are {where}'s more than once: {twice[:5]}")
        invented = len(have) - said.tried[kind]
        if invented > 0:
            out.append(f"I4: {invented} {kind} records in the {where} that nobody made")
    gone = [name for name in said.yes["file"] if name not in files]
    if gone:
        out.append(f"I1: {len(gone)} files that were saved are not in the {where}: {gone[:3]}")
    return out


def _compare_drops(said: Said, found: Found) -> list[str]:
    """A False is a counted drop; besides the calls of the ledger, only the run's own few records can be counted."""
    refused = sum(said.no.values())
    if not found.chains or (refused <= found.dropped <= refused + 6):
        return []
    return [f"I4: {refused} calls returned False and {found.dropped} drops are counted"]


def _check_blobs(spool: Spool, run: str, found: Found) -> list[str]:
    out = []
    for name, digest in found.files.items():
        own, pooled = os.path.join(spool.run(run).blobs, digest), spool.pool_path(digest)
        if not os.path.exists(own) and not os.path.exists(pooled):
            out.append(f"I5: the bytes of {name} are nowhere in the spool")
        there = [path for path in (own, pooled) if os.path.exists(path)]
        out += [f"I5: {path} has other bytes than its name says" for path in there if _digest(path) != digest]
    return out


def _digest(path: str) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# ---------------------------------------------------------------------- the server


def check_server(server: RealServer, spool_path: Path, saids: Sequence[Said], *, whole: bool = True) -> list[str]:
    """I1-I3 and I5 on the server. `whole`: everything must have arrived; else what is there must be a prefix of each writer."""
    out: list[str] = []
    spool = open_spool(spool_path)
    with closing(sqlite3.connect(f"file:{server.data}/server.db?mode=ro", uri=True, timeout=30)) as db:
        for said in (s for s in saids if s.run):
            known = db.execute("SELECT 1 FROM runs WHERE id = ?", (said.run,)).fetchone()
            if known is None:
                out += [f"I1: run {said.run} is not on the server"] if whole else []
                continue
            out += _check_run(server, said, whole=whole)
            out += _check_identity(db, said.run)
            if os.path.isdir(spool.run(said.run).path):
                out += check_prefix(db, said.run, read_run(spool, said.run), whole=whole)
    for blob in (server.data / "blobs").rglob("*"):
        if blob.is_file() and len(blob.name) == 64 and blob.name not in _known_good and _digest(str(blob)) != blob.name:
            out.append(f"I5: the server's {blob.name} has other bytes")
        _known_good.add(blob.name)
    return out


_known_good: set[str] = set()  # blobs are written once: each is hashed once a campaign


def _check_run(server: RealServer, said: Said, *, whole: bool) -> list[str]:
    points = server.points(said.run, "n")
    metrics = Counter(int(value) for _, value in points)
    events = Counter(int(w) for m in server.events(said.run) if (w := m.split(" ")[0]).isdigit())
    files = {f["name"] for f in server.get(f"/runs/{said.run}/artifacts") or []}
    out = _compare(said, metrics, events, files, "server")
    if not whole:
        out = [text for text in out if not text.startswith("I1")]
    wrong = [step for step, value in server.points(said.run, "x") if value != step * 0.5]
    if wrong:
        out.append(f"I2: {len(wrong)} points have another value than was recorded: {wrong[:3]}")
    return out


def _check_identity(db: sqlite3.Connection, run: str) -> list[str]:
    out = []
    for table in ("events", "records"):
        rows = db.execute(f"SELECT writer, seq FROM {table} WHERE run = ? GROUP BY writer, seq HAVING count(*) > 1", (run,)).fetchall()
        if rows:
            out.append(f"I2: {len(rows)} identities more than once in the server's {table}: {rows[:3]}")
    return out


def check_prefix(db: sqlite3.Connection, run: str, found: Found, *, whole: bool) -> list[str]:
    """I3: by writer, the server's chain at its mark is that of the spool's records; `whole`: and the mark is the last one."""
    out = []
    marks = {w: (mark, chain) for w, mark, chain in db.execute("SELECT id, mark, chain FROM writers WHERE run = ?", (run,))}
    for writer, chains in found.chains.items():
        mark, chain = marks.pop(writer, (0, 0))
        if mark >= len(chains):
            out.append(f"I3: the server has {mark} records of writer {writer}, the spool {len(chains) - 1}: sent before they were durable")
        elif chains[mark] != chain:
            out.append(f"I3: what the server has of writer {writer} up to {mark} is not what the spool has")
        elif whole and mark != len(chains) - 1:
            out.append(f"I1: the server has {mark} of {len(chains) - 1} records of writer {writer}")
    if marks:
        out.append(f"I3: the server has writers that the spool has not: {sorted(marks)[:3]}")
    return out


def check_drained(stage: Stage, *, damaged: bool = False, refused: bool = False, code: int = 0) -> list[str]:
    """The whole of it: sync until all is acknowledged, compare everything, sync again and see that it has no effect (I8)."""
    assert stage.server is not None
    done = stage.sync()
    out = check_scripts(stage.scripts)
    if done.code != code:
        out.append(f"I8: the sync after the fault ended with {done.code}: {done.output[-300:]}{done.errors[-300:]}")
    if not stage.spool.exists():
        return out
    saids = [s.said for s in stage.scripts]
    out += check_spool(stage.spool, saids, damaged=damaged)
    out += check_server(stage.server, stage.spool, saids, whole=not refused)
    before = _state(stage.server, saids)
    again = stage.sync()
    sent = (again.code, again.report.get("sent_records"), again.report.get("sent_files"))
    if sent != (code, 0, 0):
        out.append(f"I8: a second sync ended with {again.code} and sent {sent[1]} records, {sent[2]} files: {again.errors[-200:]}")
    if _state(stage.server, saids) != before:
        out.append("I8: a second sync changed the server")
    return out + check_balance(stage)


def _state(server: RealServer, saids: Sequence[Said]) -> list[Any]:
    with closing(sqlite3.connect(f"file:{server.data}/server.db?mode=ro", uri=True, timeout=30)) as db:
        runs = [s.run for s in saids if s.run]
        rows = []
        for run in runs:
            rows += db.execute("SELECT id, mark, chain FROM writers WHERE run = ? ORDER BY id", (run,)).fetchall()
            rows += db.execute("SELECT count(*) FROM events WHERE run = ?", (run,)).fetchall()
            rows += db.execute("SELECT metric, count FROM summaries WHERE run = ? ORDER BY metric", (run,)).fetchall()
        return rows


def check_balance(stage: Stage) -> list[str]:
    """I4: what `agent status` says is recorded equals acknowledged, waiting, refused and pruned together."""
    done = stage.command("status")
    try:
        records = done.report["records"]
        parts = [records[k] for k in ("acknowledged", "waiting", "refused", "pruned")]
    except (KeyError, TypeError):
        return [f"I4: `agent status` says nothing: {done.code} {done.errors[-300:]}"]
    return [] if records["recorded"] == sum(parts) else [f"I4: `agent status` does not balance: {records}"]
