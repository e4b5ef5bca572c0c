"""A short script that uses every system call of the spool; what returned True is counted in a mapped file (argv: spool, board)."""

from __future__ import annotations

import mmap
import os
import sys

from simspool.spool import Durability, Kind, Writer, blobs, ids, open_spool, segment

RUN = bytes(range(16))


def main() -> None:
    """Record on mapped segments, then on write(2) ones."""
    segment.SEGMENT_MAX = 1 << 16
    with open(sys.argv[2], "r+b") as f:
        board = memoryview(mmap.mmap(f.fileno(), 64)).cast("q")
    spool = open_spool(sys.argv[1], create=True)
    run = spool.run(ids.to_text(RUN))
    for place, mapped in enumerate((True, False)):
        writer = Writer(run.writers, RUN, mapped=mapped, durability=Durability.INTERVAL)
        n = kept = 0
        for size in (10, 30_000, 100, 60_000, 50_000):
            n += 1
            kept += writer.record(Kind.EVENT, {"place": place, "n": n, "pad": "x" * size})
            board[place] = kept
            n += 1
            kept += writer.metrics({"place": place, "n": n})
            board[place] = kept
            writer.maintain()
        blob = blobs.put_file(spool, run, __file__)
        assert blobs.publish(spool, run, [blob.digest]) == []
        writer.close({"status": "completed"})
    board[7] = os.getpid()


if __name__ == "__main__":
    main()
