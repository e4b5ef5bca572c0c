"""The `agent` command in the test's own process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from simspool.agent.cli import main


class Command:
    """The `agent` command in this process: its exit status, and what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *args: object) -> int:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in args], prog_name="agent")
        captured = self._capsys.readouterr()
        self.out, self.err = captured.out, captured.err
        return int(stop.value.code or 0)

    def lines(self, *args: object, code: int = 0) -> list[dict[str, Any]]:
        """Return what a command prints with --json."""
        found = self(*args, "--json")
        assert found == code, (found, self.out[-2000:], self.err[-2000:])
        return [json.loads(line) for line in self.out.splitlines()]
