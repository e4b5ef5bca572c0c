"""Receipts against a model: recorded, carried, delivered, lost, repeated and reordered as chance has it, catalogs deleted in between.

`python tests/carry/receipts_campaign.py` does it for as long as one wants.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from gap_story import STEPS, Step, Story
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ONE = st.one_of(st.tuples(st.just(what), st.integers(a, b), st.integers(c, d)) for what, (a, b, c, d) in STEPS.items())


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ONE, max_size=30))
def test_nothing_is_acknowledged_that_was_not_delivered_and_in_the_end_all_is(steps: list[Step]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="simspool-receipts-"))
    story = Story(folder)
    try:
        for one in steps:
            story.step(*one)
            story.check()
        story.end()
    finally:
        story.close()
        shutil.rmtree(folder)
