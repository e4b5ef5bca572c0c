"""On a disk of its own (see test_full_disk.py): an old run, a disk that somebody else fills, and an agent that may shed.

Prints whether the run's file was shed, how much is free, and whether the books balance.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from in_process import serve, until
from memory_target import MemoryTarget
from recorded import add_file, begin, fill

from simspool.agent import housekeeping
from simspool.agent.app import Agent
from simspool.agent.status import overview
from simspool.agent.targets.port import Unreachable
from simspool.sdk.budget import Budget, Floor
from simspool.spool import open_spool, shed


def away() -> None:
    raise Unreachable("away")


def main(disk: Path) -> None:
    housekeeping.LOOK_EVERY = 0.2
    spool = open_spool(disk / "spool", create=True)
    run, writer = begin(spool)
    fill(writer, 100, events=1)
    file = disk.parent / "f.bin"
    file.write_bytes(os.urandom(4_000_000))
    digest = add_file(spool, run, writer, file)
    writer.close({"status": "completed"})
    target = MemoryTarget()
    target.before_connect = away
    said: list[str] = []

    async def story(agent: Agent) -> None:
        await until(lambda: (disk / "spool" / "agent" / "reserve").exists())
        fd = os.open(disk / "ballast", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            while os.write(fd, bytes(65536)):
                pass
        except OSError:
            os.close(fd)
        assert os.statvfs(disk).f_bavail == 0
        await until(lambda: digest in shed.files(spool.run(run).path) and agent.guard.level < 3)
        found = await agent.work(overview, agent.catalog, spool, [])
        print(found["balanced"], found["files"]["lost"], os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize >= 1_000_000)

    serve(spool, target, story, said, budget=Budget(free=Floor(bytes=1_000_000), shed="data"))
    print("\n".join(said), file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
