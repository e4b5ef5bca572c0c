"""The campaign over a real gap, in short: see gap_campaign.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from gap_campaign import enter


@pytest.mark.root
@pytest.mark.timeout(300)
def test_two_namespaces_that_never_see_each_other(tmp_path: Path) -> None:
    """A simulation of several processes on one side, a server on the other: every point once, then pruned."""
    if os.geteuid() != 0 or not all(shutil.which(program) for program in ("unshare", "nsenter", "ip")):
        pytest.skip("SKIPPED: needs root, unshare, nsenter and ip")
    if subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode:
        pytest.skip("SKIPPED: no network namespaces here")
    done = enter(["--rounds", "3", "--steps", "150", "--seed", "7", "--folder", str(tmp_path)])
    assert done.returncode == 0, done.stdout[-4000:]
    assert json.loads(done.stdout.splitlines()[-1])["points"] == 600
