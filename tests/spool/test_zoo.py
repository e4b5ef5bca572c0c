"""Every disease has a specimen in tests/zoo, and what is expected of it beside it.

A new one: add it to make.py, run that, write its expected.json.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from simspool.spool import NewerFormat, layout
from simspool.spool.frames import Record
from simspool.spool.reader import Tail, read_drop_counts

ZOO = Path(__file__).parent.parent / "zoo"
CAGES = sorted(p.name for p in ZOO.iterdir() if p.is_dir() and not p.name.startswith("_"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def findings(spool: Path, *, dead: bool) -> dict[str, Any]:
    """Read a specimen as its expected.json tells it."""
    out: dict[str, Any] = {"sequences": [], "kinds": [], "gaps": [], "damage": [], "drops": {}, "complete": False}
    (run,) = (spool / "runs").iterdir()
    for writer in layout.list_writers(str(run / "w")):
        folder = str(run / "w" / writer)
        with Tail(folder, run.name) as tail:
            try:
                for chunk in tail.read(dead=dead):
                    for item in chunk.items:
                        rows = [item.seq] if isinstance(item, Record) else [row[1] for row in item.rows]
                        out["sequences"] += rows
                        out["kinds"] += [item.kind] * len(rows)
                    out["gaps"] += [list(gap) for gap in chunk.gaps]
                    out["damage"] += [d.as_dict() for d in chunk.damage]
                out["complete"] = tail.complete
                out["drops"] = read_drop_counts(folder)
            except NewerFormat as error:
                out["error"] = type(error).__name__
    return out


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("zoo_make", ZOO / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("cage", CAGES)
def test_a_specimen_is_read_as_expected_and_left_untouched(cage: str) -> None:
    before = contents(ZOO / cage / "spool")
    expected = json.loads((ZOO / cage / "expected.json").read_text())
    assert findings(ZOO / cage / "spool", dead=True) == expected["dead"]
    assert findings(ZOO / cage / "spool", dead=False) == expected["live"]
    assert contents(ZOO / cage / "spool") == before


def test_the_zoo_is_what_its_script_makes(make: ModuleType, tmp_path: Path) -> None:
    assert sorted(d.__name__.replace("_", "-") for d in make.DISEASES) == CAGES
    for disease in make.DISEASES:
        made = make.write(disease, tmp_path)
        cage = made.parent.name
        assert contents(made) == contents(ZOO / cage / "spool"), cage
        assert os.path.getsize(ZOO / cage / "README.md") > 50
