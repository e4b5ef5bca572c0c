"""Agent and server killed while a large file is on its way: it arrives right, and little is sent twice."""

from __future__ import annotations

from pathlib import Path

from killed_uploads import campaign

PART, CONNECTIONS = 1 << 20, 4


def test_a_killed_upload_repeats_a_part_or_two_of_each_connection(tmp_path: Path) -> None:
    found = campaign(tmp_path, 30_000_000, 10e6, kills=4, seed=1)
    print(found)
    assert found.right
    assert found.left == []
    assert found.agent_kills + found.server_kills == 4
    # the part that was under way, and one that was being made durable
    assert found.each() <= CONNECTIONS * 2 * (PART + 100_000)
