"""Any byte of a bundle may change on its way: it is refused, in whole or in that part, or the change has no effect."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from command import Command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import create
from mutating import damage, files_of
from recorded import add_file, begin, fill

from simspool.agent.bundles.errors import BadBundle, BundleRefused
from simspool.agent.bundles.reading import open_bundle
from simspool.agent.bundles.signing import load_key, make_key, parse_public
from simspool.agent.bundles.taking import take
from simspool.agent.catalog import Catalog
from simspool.spool import Spool, open_spool

_LIVES = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def bundle(origin: Spool, agent: Command, tmp_path: Path) -> Path:
    """A signed bundle with all there is: two runs, a file of both, a file that does not compress, two volumes."""
    make_key(str(tmp_path / "key"))
    both = tmp_path / "both"
    both.write_bytes(b"text " * 2000)
    for n in range(2):
        run, writer = begin(origin, f"run-{n}")
        fill(writer, 20, events=2)
        add_file(origin, run, writer, both)
        other = tmp_path / f"other-{n}"
        other.write_bytes(os.urandom(40_000))
        add_file(origin, run, writer, other)
        assert writer.close({"status": "completed"})
    made = create(agent, origin, "--volume-size", "66 kB", "--sign-key", tmp_path / "key")
    assert made["volumes"] == 2
    return Path(made["path"])


def contents(spool: Spool) -> dict[str, bytes]:
    """Return what records and files a spool has; the notes of where they come from aside."""
    found = {}
    for folder in ("runs", "blobs"):
        for path in sorted(Path(spool.path, folder).rglob("*")):
            if path.is_file() and path.name != "carried.json":
                found[str(path.relative_to(spool.path))] = path.read_bytes()
    return found


@_LIVES
@given(seed=st.integers(0, 1 << 32), signed=st.booleans())
def test_any_change_is_refused_or_has_no_effect(bundle: Path, tmp_path: Path, seed: int, signed: bool) -> None:
    """What is in the spool afterwards is never anything but what was in the bundle before it was damaged."""
    chance = random.Random(seed)
    whole, copy, spool = tmp_path / "whole", tmp_path / "copy.bundle", tmp_path / "damaged"
    trusted = (parse_public((tmp_path / "key.pub").read_text()),) if signed else ()
    if not whole.exists():
        right = open_spool(whole, create=True)
        with open_bundle(str(bundle), trusted) as opened:
            assert take(opened, right, Catalog(None), lambda *_: None).exit_code == 0
    expected = contents(open_spool(whole))
    for folder in (copy, spool):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bundle, copy)
    name = chance.choice(sorted(files_of(copy)))
    path = copy / name
    before = path.read_bytes()
    path.write_bytes(damage(before, chance))
    changed = path.read_bytes() != before
    far = open_spool(spool, create=True)
    try:
        with open_bundle(str(copy), trusted) as opened:
            taken = take(opened, far, Catalog(None), lambda *_: None)
    except (BadBundle, BundleRefused):
        assert contents(far) == {}
        return
    assert not changed or name.startswith("volume") or not signed
    if taken.exit_code == 0:
        assert contents(far) == expected
    else:
        assert all(expected[path] == data for path, data in contents(far).items() if not path.endswith(".open"))


def test_every_byte_of_the_manifest_counts(bundle: Path, tmp_path: Path) -> None:
    """Without a signature too: there is no byte of it that may be another."""
    path = bundle / "manifest.json"
    data = path.read_bytes()
    far = open_spool(tmp_path / "damaged", create=True)
    for at in range(0, len(data), 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1 :])
        with pytest.raises(BadBundle), open_bundle(str(bundle)) as opened:
            take(opened, far, Catalog(None), lambda *_: None)
    assert contents(far) == {}
    assert load_key(str(tmp_path / "key"))
