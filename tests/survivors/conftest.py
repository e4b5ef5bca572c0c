"""One site for all: an agent that watches, a server, scripts that die."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from victims import Site, Victim

from simspool.agent.survivors import declare
from simspool.spool import Spool, open_spool, process
from simspool.spool.process import Host, this_host


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A running agent with a real server: runs have ids of their own."""
    with Site(tmp_path_factory.mktemp("site")) as found:
        yield found


@pytest.fixture
def victim(site: Site) -> Iterator[Callable[..., Victim]]:
    """Begin a script; at the test's end it is gone."""
    made: list[Victim] = []

    def begin(*arguments: Any, watched: bool = True, **options: Any) -> Victim:
        made.append(Victim(site.environment, *arguments, **options))
        if watched:
            site.watched(made[-1])
        return made[-1]

    yield begin
    for one in made:
        one.end()


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the session's own."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """An empty spool."""
    return open_spool(tmp_path / "spool", create=True)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Look from a host that differs in one thing."""

    def look(**different: Any) -> None:
        here = this_host()
        parts = {"name": here.name, "boot_id": here.boot_id, "pid_namespace": here.pid_namespace, "machine": here.machine, **different}
        moved = Host(**parts)
        for module in (process, declare):
            monkeypatch.setattr(module, "this_host", lambda: moved)

    return look
