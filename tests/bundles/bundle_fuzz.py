"""Feeds the readers of manifests, signatures, settings and blocks with damaged and made-up bytes.

    python tests/bundles/bundle_fuzz.py --inputs 1000000 --seed 1

Each input ends with a result or with a documented error (BadBundle, BundleRefused, NewerFormat), soon, and within the memory that the
limits give. Prints what it saw; exit status 1, with the input, for anything else. Not part of the default tests.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import multiprocessing
import os
import random
import resource
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from mutating import damage

from simspool.agent.bundles import blocks, signing
from simspool.agent.bundles.errors import BadBundle, BundleRefused
from simspool.agent.bundles.manifest import Manifest, Member, decode, encode
from simspool.agent.bundles.signing import Trusted
from simspool.agent.carry.parts import HEAD
from simspool.spool import NewerFormat, ids

_EXPECTED = (BadBundle, BundleRefused, NewerFormat)
_SLOW, _MEMORY = 10.0, 512 << 20
_VALUES = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**100, 1.5, -0.0, 1e308, "", "x", "\0", "../../x", "/etc/passwd", "é" * 100, [], {}, [[]],
    [{}], {"a": {}}, "0" * 64, "A" * 64, "0" * 22, "z" * 22, "Z" * 22,
)  # fmt: skip


def seeds() -> Manifest:
    """Return a manifest with every kind of member."""
    run, writer, text = (ids.to_text(ids.new_id()) for _ in range(3))
    nothing, other = hashlib.sha256().hexdigest(), "a" * 64
    segment = Member("segment", run, HEAD + 100, 200, other, writer, 1, HEAD, HEAD + 100, True, nothing, other, 0, 0)
    members = (Member("run", run, 50, 54, other), Member("blob", run, 3_000_000, 2_000_000, "b" * 64, runs=(run,)), segment)
    return Manifest(text, ids.to_text(ids.new_id()), "bundle", 1.5, "", "", (1_000_000, 1_000_254), members)


def forged(body: dict[str, Any], chance: random.Random) -> bytes:
    """Return a manifest with the right digest and wrong values."""
    body = copy.deepcopy(body)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        place: Any = chance.choice([body, *body["members"]]) if isinstance(body.get("members"), list) else body
        if not isinstance(place, dict) or not place:
            continue
        key = chance.choice([*place, "more"])
        action = chance.randrange(4)
        if action == 0:
            place.pop(key, None)
        elif action == 1 and isinstance(place.get(key), int):
            place[key] += chance.choice((-1, 1, 1 << 20, 1 << 40, -(1 << 70)))
        elif action == 2 and isinstance(place.get(key), list) and place[key]:
            place[key].insert(chance.randrange(len(place[key])), copy.deepcopy(chance.choice(place[key])))
        else:
            place[key] = copy.deepcopy(chance.choice(_VALUES))
    text = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    if chance.random() < 0.2:
        text = damage(text, chance)
    return b'{"bundle":' + text + b',"sha256":"' + hashlib.sha256(text).hexdigest().encode() + b'"}\n'


def one(chance: random.Random, known: dict[str, Any], pool: ThreadPoolExecutor) -> tuple[str, bytes]:
    """Feed one input; return what came of it, and the input."""
    kind = chance.choice(("manifest", "forged", "forged", "block", "block", "member", "signature"))
    data = b""
    try:
        if kind == "manifest":
            data = damage(known["document"], chance)
            decode(data)
        elif kind == "forged":
            data = forged(known["body"], chance)
            made = decode(data)
            if sum(made.volumes) != sum(m.stored for m in made.members):
                return "wrong: sizes", data
        elif kind == "block":
            data = damage(chance.choice(known["blocks"]), chance)
            size = chance.choice((1, 100, 5000, len(data)))
            if len(blocks.unpack(data, size)) != size:
                return "wrong: size", data
        elif kind == "member":
            data = damage(chance.choice(known["stored"]), chance)
            at, size = 0, chance.choice((0, 5000, 5001, blocks.BLOCK + 5000))

            def read(length: int) -> bytes:
                nonlocal at
                at += length
                return data[at - length : at]

            if sum(map(len, blocks.read_blocks(read, size, len(data), pool))) != size:
                return "wrong: length", data
        else:
            data = damage(known["signature"], chance)
            signing.verify(b"document", data, signing.BUNDLE, known["trusted"], allow_unsigned=False, what="x")
            if data.split() != known["signature"].split():
                return "wrong: taken", data
    except _EXPECTED as error:
        return f"{kind}: {type(error).__name__}", data
    return f"{kind}: taken", data


def work(job: tuple[int, int]) -> tuple[Counter[str], list[str], float, int]:
    """Feed many inputs; return what came of them, the failures, the longest (s), and the memory (bytes)."""
    seed, count = job
    chance = random.Random(seed)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"fuzz").digest())
    document = encode(seeds())
    contents = [b"text " * 1000, os.urandom(5000), b"\0" * 5000]
    stored = [b"".join(blocks.pack(c)) for c in contents]
    stored.append(b"".join((*blocks.pack(bytes(blocks.BLOCK)), *blocks.pack(contents[0]))))
    known: dict[str, Any] = {
        "document": document, "body": json.loads(document)["bundle"], "blocks": [s[blocks.HEADER :] for s in stored[:3]], "stored": stored,
        "signature": signing.sign(b"document", signing.BUNDLE, key), "trusted": [Trusted(key.public_key().public_bytes_raw(), "fuzz")],
    }  # fmt: skip
    seen: Counter[str] = Counter()
    failures, longest = [], 0.0
    with ThreadPoolExecutor(1) as pool:
        for number in range(count):
            began = time.perf_counter()
            data = b""
            try:
                what, data = one(chance, known, pool)
            except Exception as error:
                what = f"wrong: {type(error).__name__}: {error}"
            spent = time.perf_counter() - began
            longest = max(longest, spent)
            seen[what] += 1
            if what.startswith("wrong") or spent > _SLOW:
                failures.append(f"input {number} of seed {seed}: {what}, {spent:.2f} s: {data[:200]!r}")
    return seen, failures, longest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main() -> int:
    """Do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    each = 5000
    jobs = [(chosen.seed * 1_000_003 + n, min(each, chosen.inputs - n * each)) for n in range(-(-chosen.inputs // each))]
    began = time.perf_counter()
    seen: Counter[str] = Counter()
    failures: list[str] = []
    longest, memory = 0.0, 0
    with multiprocessing.get_context("fork").Pool(chosen.processes) as pool:
        for counts, wrong, slowest, used in pool.imap_unordered(work, jobs):
            seen += counts
            failures += wrong
            longest, memory = max(longest, slowest), max(memory, used)
    for what, count in seen.most_common():
        print(f"{count:>9}  {what}")
    spent = time.perf_counter() - began
    total = sum(seen.values())
    print(f"{total} inputs in {spent:.0f} s, the longest {1000 * longest:.1f} ms, {memory / 1e6:.0f} MB; {len(failures)} failures")
    for line in failures[:20]:
        print(line)
    return 1 if failures or memory > _MEMORY else 0


if __name__ == "__main__":
    sys.exit(main())
