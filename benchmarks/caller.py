"""What recording costs the script: a call, an import, a file."""

from __future__ import annotations

from harness import Figure, Plan, median, python, scratch, warm_memory

# The three variants take turns in one process, so that other load hits all of them alike.
_CALLS = """
import json, os, sys, time, statistics
from simspool.sdk import Run
rounds, calls = int(sys.argv[1]), int(sys.argv[2])
clock = time.perf_counter_ns
runs = {}
for kind in ("mapped", "file"):
    os.environ["SIMSPOOL_SEGMENTS"] = kind
    runs[kind] = Run(mode="offline")
    runs[kind].init(kind)
fd = os.open("reference.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
seq = 0

def reference(values, step):
    global seq
    seq += 1
    record = {"seq": seq, "time": time.monotonic(), "step": step, "values": values}
    os.write(fd, (json.dumps(record) + "\\n").encode())

def empty(values, step):
    pass

def sdk(run):
    log = run.log_metrics
    def call(values, step):
        log(values, step=step)
    return call

variants = {"empty": empty, "reference": reference, "mapped": sdk(runs["mapped"]), "file": sdk(runs["file"])}
times = {name: [] for name in variants}
tight = {name: [] for name in variants}
step = 0
for turn in range(rounds + 1):
    for name, call in variants.items():
        took = []
        for i in range(calls):
            step += 1
            values = {"loss": 1.0 / step, "accuracy": 0.5 + i * 1e-9}
            a = clock()
            call(values, step)
            took.append(clock() - a)
        if turn:
            times[name] += took
        batch = [({"loss": 1.0 / step, "accuracy": 0.5 + i * 1e-9}, step + i) for i in range(calls)]
        a = clock()
        for values, n in batch:
            call(values, n)
        if turn:
            tight[name].append((clock() - a) / calls)
# The mean over one more round per variant gives the bytes of a call.
def size(kind):
    folder = os.path.join(os.environ["SIMSPOOL_DIR"], "runs", runs[kind].id, "w")
    return sum(os.path.getsize(os.path.join(b, n)) for b, _, ns in os.walk(folder) for n in ns if n.endswith(".seg"))
for run in runs.values():
    run.close()
total = 2 * (rounds + 1) * calls
zero = statistics.median(times["empty"])
out = {}
for name, values in times.items():
    values.sort()
    out[name] = {"median": statistics.median(values) - zero, "p99": values[int(len(values) * 0.99)] - zero,
                 "tight": statistics.median(tight[name]) - statistics.median(tight["empty"])}
out["bytes"] = {"mapped": size("mapped") / total, "file": size("file") / total, "reference": os.fstat(fd).st_size / total}
out["n"] = len(times["mapped"])
print(json.dumps(out))
"""


def log_metrics(plan: Plan) -> list[Figure]:
    """The cost of one `Run.log_metrics` with two metrics."""
    with scratch(plan, "calls") as folder:
        r = python(_CALLS, folder, plan.scale(20, 5), plan.scale(2000, 1000))
    ref = r["reference"]
    beside = f"json.dumps + os.write: median {ref['median']:,.0f} ns, p99 {ref['p99']:,.0f} ns, tight loop {ref['tight']:,.0f} ns"
    figures = []
    for kind, label, bar in (("mapped", "mapped segment", 0.4), ("file", "write(2) segment", 0.7)):
        v = r[kind]
        detail = (
            f"median {v['median']:,.0f} ns, p99 {v['p99']:,.0f} ns, tight loop {v['tight']:,.0f} ns ({v['tight'] / ref['tight']:.2f} x)"
        )
        figures.append(
            Figure(f"log_metrics, {label}", v["median"] / ref["median"], "x", bar, reference=beside, detail=detail, n=f"{r['n']:,} calls")
        )
    b = r["bytes"]
    figures.append(
        Figure(
            "bytes in the spool a call",
            b["mapped"],
            "B",
            64,
            reference=f"JSON line: {b['reference']:.0f} B",
            detail=f"write(2): {b['file']:.1f} B",
        )
    )
    return figures


_EMPTY = "import json, time; print(json.dumps([]))"
_IMPORT = """
import json, sys, time
before = set(sys.modules)
from simspool.sdk import Run
tops = {m.split(".")[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names) - {"simspool"}
print(json.dumps(sorted(tops)))
"""


def import_time(plan: Plan) -> list[Figure]:
    """`from simspool.sdk import Run` over a Python that does nothing, whole processes in turns."""
    import time

    bare, full, third = [], [], []
    with scratch(plan, "import") as folder:
        for turn in range(plan.scale(41, 11) + 1):
            for program, took in ((_EMPTY, bare), (_IMPORT, full)):
                a = time.perf_counter()
                third = python(program, folder)
                if turn:
                    took.append(1000 * (time.perf_counter() - a))
    name, reference = "import of simspool.sdk's Run, over bare Python", f"bare Python: {median(bare):.1f} ms"
    detail = f"third-party modules loaded: {', '.join(third) or 'none'}"
    return [Figure(name, median(full) - median(bare), "ms", 30, reference=reference, detail=detail, n=f"{len(full)} processes in turns")]


_FILE = """
import hashlib, json, os, statistics, sys, time
from pathlib import Path
from simspool.sdk import Run
size, rounds = int(sys.argv[1]), int(sys.argv[2])
sys.path.insert(0, sys.argv[3])
from harness import stored_bytes
spool = Path(os.environ["SIMSPOOL_DIR"])
block = os.urandom(1 << 20)
hashing, copying, saving, again = [], [], [], []

def copy():
    if os.path.exists("plain.bin"):
        os.unlink("plain.bin")
    with open("file.bin", "rb") as f, open("plain.bin", "wb") as to:
        while data := f.read(1 << 20):
            to.write(data)

with Run(mode="offline") as run:
    run.init("files")
    blobs = spool / "blobs", spool / "runs" / run.id / "blobs"
    for turn in range(rounds + 1):
        with open("file.bin", "wb") as f:
            for i in range(size >> 20):
                f.write(turn.to_bytes(8, "little") + i.to_bytes(8, "little") + block[16:])
            f.flush()
            os.fsync(f.fileno())
        copy()  # whoever copies first would pay for the memory of the copy
        os.unlink("plain.bin")
        a = time.perf_counter()
        with open("file.bin", "rb") as f:
            hashlib.file_digest(f, "sha256")
        b = time.perf_counter()
        copy()
        c = time.perf_counter()
        os.unlink("plain.bin")
        d = time.perf_counter()
        assert run.save_file("file.bin", category="output", name=f"file-{turn}") is True
        e = time.perf_counter()
        before = stored_bytes(*blobs)
        assert run.save_file("file.bin", category="output", name=f"copy-{turn}") is True
        after = stored_bytes(*blobs)
        if turn:
            hashing.append(b - a), copying.append(c - b), saving.append(e - d), again.append(after - before)
        time.sleep(2)  # let the upkeep publish and the disk write back, so that rounds do not slow each other
print(json.dumps({"hash": hashing, "copy": copying, "save": saving, "again": again}))
"""


def save_file(plan: Plan) -> list[Figure]:
    """`Run.save_file` against hashing the same file, in turns; and what a second save of the same content stores."""
    from pathlib import Path

    size = plan.scale(256, 64) << 20
    warm_memory(plan.scale(24, 8) * size)
    with scratch(plan, "files") as folder:
        r = python(_FILE, folder, size, plan.scale(7, 3), Path(__file__).parent)
    speed = [size / 1e6 / s for s in r["save"]]
    hashed = [size / 1e6 / s for s in r["hash"]]
    copied = [size / 1e6 / s for s in r["copy"]]
    ratio = median([h / s for h, s in zip(r["hash"], r["save"], strict=True)])
    n = f"{len(speed)} files of {size >> 20} MiB"
    reference = f"SHA-256 alone: {median(hashed):,.0f} MB/s, plain copy alone: {median(copied):,.0f} MB/s"
    detail = f"save_file: {median(speed):,.0f} MB/s, range {min(speed):,.0f} to {max(speed):,.0f}"
    return [
        Figure("save_file over SHA-256 alone, speed", ratio, "x", 0.5, lower=False, reference=reference, detail=detail, n=n),
        Figure("second save of the same content stores", max(r["again"]), "B", 0, n=n),
    ]
