"""The Simvue target against the stand-in: the suite that every target passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conformance import Conformance
from simvue_bench import SimvueBench


class TestSimvue(Conformance):
    """All of the suite."""

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimvueBench]:
        made = SimvueBench(tmp_path_factory.mktemp("simvue"))
        yield made
        made.kill()
