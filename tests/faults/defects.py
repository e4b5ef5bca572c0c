"""Seeded defects: each a small change of the source that breaks a promise, and what should notice it (F23).

A catcher is what pytest is told, or `campaign F4` for the sample of a campaign's fault. `tests/faults/sensitivity.py` plays them.
"""
# ruff: noqa: E501 - the texts are those of other files

from __future__ import annotations

from typing import NamedTuple


class Defect(NamedTuple):
    """`changes` are (file, old text, new text); the old text must be there exactly once."""

    name: str
    changes: tuple[tuple[str, str, str], ...]
    catcher: str


def _one(name: str, file: str, old: str, new: str, catcher: str) -> Defect:
    return Defect(name, ((file, old, new),), catcher)


DAMAGE, MODEL = "tests/spool/test_damage.py", "campaign F4"
FACTS, OUTCOMES = "tests/faults/test_facts.py", "tests/agent/test_drain_outcomes.py"
RETENTION, SERVER = "tests/agent/test_retention.py", "tests/server/test_drain.py"

DEFECTS = (
    # ------------------------------------------------------------------ the writer
    _one("`each` does not sync", "spool/stream.py",
         "            sync_segment(file.fd, self.folder, named=self.named == file.number)\n        except OSError as error:\n            self.give_up",
         "            pass\n        except OSError as error:\n            self.give_up", MODEL),
    _one("a segment's name is never made durable", "spool/stream.py", "        os.fsync(fd)\n        atomic.sync_folder(folder)", "        os.fsync(fd)", MODEL),
    _one("a seal is renamed before it is fsynced", "spool/segment.py", "    os.fsync(segment.fd)\n", "", MODEL),
    _one("a rename is not made durable", "spool/atomic.py",
         "    os.rename(source, target)\n    sync_folder(os.path.dirname(target))", "    os.rename(source, target)", MODEL),
    _one("a whole file is renamed before it is fsynced", "spool/atomic.py", "            os.fsync(fd)\n        finally:\n            os.close(fd)\n        if exclusive",
         "            pass\n        finally:\n            os.close(fd)\n        if exclusive", MODEL),
    _one("a blob enters the pool before it is fsynced", "spool/blobs.py", "                continue\n            os.fsync(fd)\n", "                continue\n", MODEL),
    _one("a full disk is swallowed: the call returns True", "spool/stream.py",
         "        return self.drop(Drop.DISK_FULL if error.errno in _SPACE_ERRORS else Drop.IO_ERROR)", "        return True",
         "tests/faults/test_full_disk.py"),
    _one("drops are counted in memory only", "spool/stream.py", "                self.now.store[at : at + 16] = raw\n        return False",
         "                pass\n        return False", "tests/faults/test_full_disk.py tests/spool/test_writer.py -k 'full_disk or drop_counters'"),
    _one("a forked child goes on with its parent's sequences", "spool/writer.py",
         "        return stream if stream.page[0] == 1 else self._after_fork()", "        return stream",
         "tests/spool/test_writer.py -k fork"),
    _one("definitions are written once", "spool/stream.py", "        for _ in range(2):\n            end = now.pos + len(definition)",
         "        for _ in range(1):\n            end = now.pos + len(definition)", f"{DAMAGE} tests/spool/test_writer.py -k 'bit_flip or definition'"),
    _one("a record waits in the process, and True is said", "spool/stream.py",
         "        now.store[pos:end] = frame\n        now.pos = end\n        self.seq += 1\n        self.dirty = True",
         "        now.pos = end\n        self.seq += 1\n        self.dirty = True", "tests/spool/test_writer.py -k 'come_back or threads'"),
    _one("the record of a file comes before its bytes", "sdk/recording.py", "            blob = put(spool, folder)\n",
         '            writer.record(Kind.ARTIFACT, {**body, "name": body["name"] or "?", "digest": "0" * 64, "size": 0})\n            blob = put(spool, folder)\n',
         "tests/faults/test_campaign.py -k undisturbed"),
    # ------------------------------------------------------------------ the reader
    _one("the checksum of JSON frames is not looked at", "spool/frames.py", "            if crc32(data[offset:crc_at], crc_seed) != crc:", "            if False:",
         f"{DAMAGE} -k bit_flip"),
    _one("the checksum of metric frames is not looked at", "spool/frames.py",
         " or crc32(data[offset : offset + length - 4], crc_seed) != row[-1]:", ":", f"{DAMAGE} -k bit_flip"),
    _one("a sealed segment is read to its first bad frame only", "spool/reader.py",
         '        at = salvager.next_valid(bad + (length if verdict == "valid" else 8), self.sequence)', "        at = None", f"{DAMAGE} -k bit_flip"),
    _one("a torn tail counts as corrupt", "spool/reader.py", '"torn" if verdict == "torn" or half_written else "corrupt"', '"corrupt"',
         f"{DAMAGE} -k truncation"),
    _one("segments come in the order of the folder", "spool/layout.py", "    return [found[n] for n in sorted(found)]", "    return list(found.values())[::-1]",
         "tests/spool/test_tail.py tests/spool/test_model.py"),
    _one("a gap in the sequences is not noticed", "spool/reader.py", "                elif part.first > self.sequence:\n", "                elif False:\n",
         "tests/spool/test_zoo.py"),
    # ------------------------------------------------------------------ the agent
    _one("nothing is fdatasynced before it is sent", "agent/drain/ranges.py", "            if not sealed:\n                os.fdatasync(fd)\n", "", FACTS),
    _one("the journal is not fsynced", "agent/journal/journal.py", "        if not writer.sync():\n", "        if False:\n", MODEL),
    _one("the receipt is journaled before the send", "agent/drain/batch.py", "        batch = Batch(ranges)\n",
         "        self._journal.receive(self.server, 0.0, [Cursor(r.writer, r.last, r.chain_after, r.segment, r.end) for r in ranges])\n        batch = Batch(ranges)\n",
         FACTS),
    _one("the agent takes a conflict for a receipt", "agent/drain/batch.py", "            ok = verdict.chain == sent.chain_after\n", "            ok = True\n", OUTCOMES),
    _one("a server that has less is not gone back to", "agent/drain/batch.py", "        self._journal.rewind(self.server, found)", "        return", FACTS),
    _one("a permanent verdict is tried again", "agent/drain/batch.py", '            elif verdict.kind == "permanent":\n                blocked[sent.writer] = verdict.reason\n',
         '            elif verdict.kind == "permanent":\n                continue\n', f"{OUTCOMES} -k poison_range"),
    Defect("what is put off waits by the wall clock", (
        ("agent/drain/batch.py", "        now = time.monotonic()\n        wanted", "        now = time.time()\n        wanted"),
        ("agent/drain/batch.py", "        self._waiting[writer] = time.monotonic() + 10.0\n        self.delivered.problems[writer] = problem\n        self.delivered.lacking",
         "        self._waiting[writer] = time.time() + 10.0\n        self.delivered.problems[writer] = problem\n        self.delivered.lacking"),
    ), FACTS),
    _one("the chain is not extended over gaps", "agent/ingest/follow.py", "                self.chain = frames.extend_chain_gap(self.chain, part[1] - part[0] + 1)",
         "                pass", FACTS),
    _one("a deleted catalog forgets the receipts", "agent/journal/journal.py", "                if closed or writer == own:",
         "                if not closed or writer == own:", "tests/agent/test_journal.py -k deleted"),
    _one("runs are pruned without receipts", "agent/retention.py", "c.mark IS NULL OR c.mark < w.sequence - 1 OR ", "", FACTS),
    _one("runs are pruned without grace", "agent/retention.py", "        before = time.time() - self._grace", "        before = time.time()", f"{RETENTION} -k grace"),
    _one("files go before the prune is journaled", "agent/retention.py", "            self._journal.prune(run, time.time(), known)\n",
         "            self._delete(going)\n            self._journal.prune(run, time.time(), known)\n            return 0\n", f"{MODEL} {RETENTION}"),
    _one("the lock is not held", "spool/lock.py", "            fcntl.flock(fd, how | fcntl.LOCK_NB)", "            pass", "tests/spool/test_layout.py -k lock"),
    _one("a process with a reused pid counts as alive", "spool/process.py", " and found[0] == header.start_ticks", "", "tests/spool/test_process.py"),
    _one("a wait is not spread: all agents come back at once", "agent/drain/backoff.py", "        return max(floor, self._random() * bound)",
         "        return max(floor, bound)", "campaign F12"),
    # ------------------------------------------------------------------ the server
    _one("the server takes a cloned writer", "agent/server/drain.py",
         '        if part.first <= mark <= part.last and part.extend(running, mark) != chain:\n            return refuse(writer, "conflict", mark, chain)\n', "",
         f"{SERVER} -k cloned"),
    _one("the server takes what is below its mark again", "agent/server/drain.py", "        if part.last > mark:\n            _gather(rows, entry, part, mark)",
         "        _gather(rows, entry, part, 0)", f"{SERVER} -k lost_reply"),
    _one("the server takes a range beyond its mark", "agent/server/drain.py", "    if entry.first > mark + 1:\n", "    if False:\n", f"{SERVER} -k gap_is_not"),
    _one("rows and mark are committed one after the other", "agent/server/drain.py", "        return done\n    _store(db, who, entry, rows)\n",
         '        return done\n    _store(db, who, entry, rows)\n    db.execute("COMMIT")\n    db.execute("BEGIN IMMEDIATE")\n    db.execute("SAVEPOINT job")\n    db.execute("SAVEPOINT range")\n',
         FACTS),
    _one("marks are not scoped to their owner", "agent/server/drain.py",
         '    if (known is not None and (known["owner"] != who.user or known["run"] != run or known["chain"] is None)) or (\n        owned is not None and owned["owner"] != who.user\n    ):',
         '    if known is not None and (known["run"] != run or known["chain"] is None):', f"{SERVER} -k belong"),
    _one("equal events are taken for one", "agent/server/drain.py", "            rows.events.append(_event(record, wall))",
         "            made = _event(record, wall)\n            if all(made[4] != old[4] for old in rows.events):\n                rows.events.append(made)", FACTS),
    _one("the server does not verify a file's bytes", "agent/server/blobstore.py", "            if hasher.hexdigest() != digest:\n", "            if False:\n", f"{SERVER} -k blobs_are"),
    _one("the server's commits are not durable", "agent/server/database.py", '    connection.execute("PRAGMA synchronous = FULL")\n', '    connection.execute("PRAGMA synchronous = OFF")\n',
         "tests/server/test_database.py"),
)  # fmt: skip
