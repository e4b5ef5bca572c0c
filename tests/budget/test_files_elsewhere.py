"""Files that do not come through a script's own calls are refused in the same way: `agent log file`, and lines of an inbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from recorded import begin

from simspool.agent.exit_codes import ExitCode
from simspool.agent.inbox import quarantine
from simspool.agent.inbox.copying import RunInbox
from simspool.spool import Spool, pressure
from simspool.spool.pressure import FILES, METRICS, Pressure
from simspool.spool.reader import read_drop_counts


def test_agent_log_file_says_why_not(spool: Spool, tmp_path: Path) -> None:
    run, writer = begin(spool)
    file = tmp_path / "f.txt"
    file.write_text("x")
    command = [sys.executable, "-m", "simspool.agent", "log", "file", str(file), "--run", run]
    pressure.publish(spool.path, Pressure(FILES, 1.0, "there is no room", 1.0))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == ExitCode.SPOOL_UNUSABLE
    assert "the spool takes no files now: there is no room" in done.stderr
    pressure.publish(spool.path, Pressure(METRICS, 0.9, "there is little room", 1.0))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    writer.close()


def test_a_line_that_names_a_file_is_kept_and_counted(spool: Spool, tmp_path: Path) -> None:
    run, writer = begin(spool, system={"cwd": str(tmp_path)})
    file = tmp_path / "f.txt"
    file.write_text("x")
    inbox = Path(spool.run(run).inbox)
    inbox.mkdir()
    lines = [{"event": "before"}, {"file": str(file), "category": "output"}, {"event": "after"}]
    (inbox / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pressure.publish(spool.path, Pressure(FILES, 1.0, "there is no room", 1.0))
    with ThreadPoolExecutor(1) as aside:
        agent = RunInbox(spool, run, lambda _: None, aside)
        while agent.copy(listing=True):
            pass
        agent.release()
    writer.close()
    [own] = [w for w in spool.run(run).writer_ids() if w != writer.id_text]
    assert read_drop_counts(spool.run(run).writer(own)) == {"budget": 1}
    assert not os.path.exists(spool.run(run).blobs)
    kept = Path(quarantine.path_of(spool, run, "a.jsonl")).read_text()
    assert "no files are taken: there is no room" in kept
    assert str(file) in kept
