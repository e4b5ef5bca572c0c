"""What is refused, what waits, what is swept; keys; settings: the parts of a relay in one process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from command import Command
from recorded import begin, fill, whole
from sides import BUNDLE, A, Side

from simspool.agent.bundles.settings import BundleSettings
from simspool.agent.bundles.settings import parse as parse_bundle
from simspool.agent.bundles.signing import make_key
from simspool.agent.carry.receipts import parse_receipt
from simspool.agent.catalog import Catalog
from simspool.agent.exit_codes import CommandError
from simspool.agent.leaving.settings import Leaving
from simspool.agent.relay import folder
from simspool.agent.relay.keeping import Sayer
from simspool.agent.relay.place import Refusal, parse_reason, parse_ssh, reason_text
from simspool.agent.relay.receiving import Receiver
from simspool.agent.relay.sending import Means, Sender
from simspool.agent.relay.settings import RelaySettings, parse
from simspool.spool import Locked


class Ends:
    """Both ends of a relay, turn by turn; `said` is what they said."""

    def __init__(
        self, tmp_path: Path, *, here: BundleSettings | None = None, there: BundleSettings | None = None,
        leaving: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.origin, self.far, self.place = Side(tmp_path / "origin"), Side(tmp_path / "far"), tmp_path / "place"
        self.place.mkdir(mode=0o700, exist_ok=True)
        self.far.serves(A)
        self.said: list[str] = []

        async def settle() -> None:
            self.origin.take_in()
            self.origin.ingest.bury()

        async def apply(document: bytes, name: str) -> Mapping[str, Any]:
            return self.origin.apply(document, name).as_dict()

        means = Means(settle, lambda: self._view(self.origin), apply, lambda: [BUNDLE])
        self.sender = Sender(
            self.origin.spool, folder.FolderPlace(str(self.place)), means, RelaySettings(every=0.2), here or BundleSettings(),
            Leaving(leaving or {}), Sayer(self.said.append),
        )  # fmt: skip
        self.receiver = Receiver(
            self.far.spool, str(self.place), lambda: self._view(self.far), lambda: [A], there or BundleSettings(), Sayer(self.said.append)
        )

    @staticmethod
    @contextlib.contextmanager
    def _view(side: Side) -> Iterator[Catalog]:
        catalog = Catalog(side.catalog.path, shared=True)
        try:
            yield catalog
        finally:
            catalog.close()

    def send(self) -> float:
        return asyncio.run(self.sender.turn())

    def arrived(self) -> list[str]:
        return folder.arrived(str(self.place))

    def close(self) -> None:
        asyncio.run(self.sender.close())
        self.receiver.close()
        self.origin.close()
        self.far.close()


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    """Both ends of a relay."""
    found = Ends(tmp_path)
    yield found
    found.close()


def alter(path: Path) -> None:
    data = bytearray((path / "volume-0001").read_bytes())
    data[-1] ^= 1
    (path / "volume-0001").write_bytes(data)


def test_one_bundle_at_a_time(ends: Ends) -> None:
    """The next one is made when a receipt covers the last one; then it has only what is new."""
    run, writer = begin(ends.origin.spool)
    fill(writer, 100)
    ends.send()
    [first] = ends.arrived()
    fill(writer, 100, start=100)
    for _ in range(3):
        ends.send()
    assert ends.arrived() == [first]
    assert ends.receiver.turn().bundles == 1
    assert ends.arrived() == []
    ends.send()
    [second] = ends.arrived()
    assert ends.receiver.turn().bundles == 1
    assert second != first
    ends.send()
    assert ends.arrived() == []
    assert ends.sender.nothing_new
    ends.far.take_in()
    assert ends.far.recorded(run) == ends.origin.recorded(run)


def test_three_refusals_and_it_waits_loudly(ends: Ends) -> None:
    """An altered bundle is made again, at once; after three in a row it says so and waits; when one is taken, all is well."""
    whole(ends.origin.spool)
    for n in range(3):
        ends.send()
        [name] = ends.arrived()
        alter(ends.place / "in" / name)
        assert ends.receiver.turn().refused == 1
        assert sum("the other side refuses" in text for text in ends.said) == n
    ends.send()
    assert ends.arrived() == []
    assert "(the 3. in a row: the next one is sent in 1 min" in ends.said[-1]
    ends.send()
    assert ends.arrived() == []
    ends.sender._not_before = 0.0
    ends.send()
    assert ends.receiver.turn().bundles == 1
    ends.send()
    assert ends.sender.nothing_new


def test_only_the_last_refused_bundles_are_kept(ends: Ends) -> None:
    """A folder of what was refused does not grow for ever; the reasons stay longer."""
    whole(ends.origin.spool)
    for _ in range(folder.KEPT + 3):
        ends.sender._last = ""
        ends.send()
        [name] = ends.arrived()
        alter(ends.place / "in" / name)
        ends.receiver.turn()
    there = os.listdir(ends.place / "refused")
    assert len([n for n in there if n.endswith(".bundle")]) == folder.KEPT
    assert len([n for n in there if n.endswith(".json")]) == folder.KEPT + 3


def test_a_killed_receiver_takes_it_again(ends: Ends) -> None:
    """Between import, receipt and deletion: the next one does what is left, and nothing is there twice."""
    run = whole(ends.origin.spool)
    ends.send()
    [name] = ends.arrived()
    os.rename(ends.place / "in" / name, ends.place / "kept")
    os.mkdir(ends.place / "in" / name)
    for file in (ends.place / "kept").iterdir():
        (ends.place / "in" / name / file.name).write_bytes(file.read_bytes())
    ends.receiver.turn()
    (ends.place / "receipts" / f"{ends.origin.spool.id}.receipt").unlink()
    os.rename(ends.place / "kept", ends.place / "in" / name)
    ends.receiver.close()
    again = Receiver(
        ends.far.spool, str(ends.place), ends.receiver._view, lambda: [A], BundleSettings(), Sayer(ends.said.append)
    )  # fmt: skip
    found = again.turn()
    assert (found.bundles, found.new_bytes, found.receipts) == (1, 0, 1)
    again.close()
    ends.send()
    assert ends.sender.nothing_new
    ends.far.take_in()
    assert ends.far.recorded(run) == ends.origin.recorded(run)


def test_receipts_follow_what_is_delivered(ends: Ends) -> None:
    """Custody first; when the far side's server has it, the receipt says so, and the origin counts it. Nothing changed: none is written."""
    run = whole(ends.origin.spool)
    ends.send()
    assert ends.receiver.turn().receipts == 1
    assert ends.receiver.turn().receipts == 0
    ends.far.take_in()
    ends.far.deliver("a", run)
    assert ends.receiver.turn().receipts == 1
    ends.send()
    assert ends.origin.prune("bundle:bundle") == [run]
    document, signature = folder.read_receipt(str(ends.place), ends.origin.spool.id) or (b"", b"")
    assert parse_receipt(document).runs[run].complete
    assert signature is None


def test_keys_both_ways(tmp_path: Path) -> None:
    """Bundles and receipts are signed, and only those of trusted keys are taken."""
    mine, other = make_key(str(tmp_path / "mine")), make_key(str(tmp_path / "other"))
    here = parse_bundle({"sign_key": str(tmp_path / "mine"), "trusted": [other]}, str(tmp_path / "x"))
    there = parse_bundle({"sign_key": str(tmp_path / "other"), "trusted": [mine]}, str(tmp_path / "x"))
    ends = Ends(tmp_path, here=here, there=there)
    whole(ends.origin.spool)
    ends.send()
    assert ends.receiver.turn().bundles == 1
    ends.send()
    assert ends.sender.nothing_new
    receipt = ends.place / "receipts" / f"{ends.origin.spool.id}.receipt"
    receipt.write_bytes(receipt.read_bytes().replace(b'"complete":false', b'"complete":true '))
    with pytest.raises(Exception, match="is wrong: it was altered"):
        ends.send()
    with pytest.raises(Exception, match="is wrong: it was altered"):
        ends.send()
    Path(f"{receipt}.sig").unlink()
    with pytest.raises(Exception, match="is not signed"):
        ends.send()
    ends.close()


def test_unsigned_bundles_are_refused_where_keys_are_trusted(tmp_path: Path) -> None:
    """The sender hears why."""
    ends = Ends(tmp_path, there=parse_bundle({"trusted": [make_key(str(tmp_path / "other"))]}, str(tmp_path / "x")))
    whole(ends.origin.spool)
    ends.send()
    assert ends.receiver.turn().refused == 1
    ends.send()
    assert any("the other side refuses" in text and "is not signed" in text for text in ends.said)
    ends.close()


def test_what_may_not_leave_stays(tmp_path: Path) -> None:
    """By `[leaving]`: the run is named and left out, the others go."""
    ends = Ends(tmp_path, leaving={"only": ["folder:/open"]})
    open_, closed = whole(ends.origin.spool, folder="/open"), whole(ends.origin.spool, folder="/closed")
    ends.send()
    assert ends.receiver.turn().bundles == 1
    ends.send()
    assert ends.far.spool.run_ids() == [open_]
    assert any(closed in text and "may not leave" in text for text in ends.said)
    ends.close()


def test_links_and_strange_names_in_a_place(ends: Ends, tmp_path: Path) -> None:
    """A link is not followed, also not to be deleted; names that no bundle has are left alone."""
    folder.prepare(str(ends.place))
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("mine")
    name = "simspool-AAAAAAAA-20260101T000000Z-BBBBBBBB.bundle"
    os.symlink(precious, ends.place / "in" / name)
    (ends.place / "in" / "notes.txt").write_text("hello")
    (ends.place / "in" / "x.bundle").mkdir()
    found = ends.receiver.turn()
    assert found.refused == 1
    for _ in range(folder.KEPT + 1):
        folder.refuse(str(ends.place), name, Refusal("again"))
    folder.discard(str(ends.place / "refused" / name))
    assert (precious / "data").read_text() == "mine"
    assert sorted(os.listdir(ends.place / "in")) == [".receiver.lock", "notes.txt", "x.bundle"]


def test_what_was_being_brought_is_swept_after_an_hour(ends: Ends) -> None:
    """Not before: somebody may still be at it. What was being deleted goes at once."""
    folder.prepare(str(ends.place))
    stem = "simspool-AAAAAAAA-20260101T000000Z-BBBBBBBB"
    for name in (f".{stem}.bundle.part", f".{stem}.part", f".{stem}.bundle.done"):
        (ends.place / "in" / name).mkdir()
        (ends.place / "in" / name / "volume-0001").write_bytes(b"x")
    now = time.time()
    assert folder.sweep(str(ends.place), now + 3000) == []
    assert sorted(os.listdir(ends.place / "in")) == [f".{stem}.bundle.part", f".{stem}.part"]
    assert folder.sweep(str(ends.place), now + 3700) == []
    assert os.listdir(ends.place / "in") == []


def test_two_senders_and_two_receivers(ends: Ends) -> None:
    """The second one waits for the first to end, and then goes on."""
    whole(ends.origin.spool)
    ends.send()
    other = Sender(
        ends.origin.spool, folder.FolderPlace(str(ends.place)), ends.sender._means, RelaySettings(), BundleSettings(), Leaving(),
        Sayer(ends.said.append),
    )  # fmt: skip
    with pytest.raises(Locked, match="relays from this spool"):
        asyncio.run(other.turn())
    ends.receiver.turn()
    second = Receiver(ends.far.spool, str(ends.place), ends.receiver._view, lambda: [A], BundleSettings(), Sayer(ends.said.append))
    with pytest.raises(Locked, match="takes what arrives there"):
        second.turn()
    ends.receiver.close()
    assert second.turn().exit_code == 0
    second.close()
    asyncio.run(ends.sender.close())
    asyncio.run(other.turn())
    assert other.nothing_new
    asyncio.run(other.close())


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"reason": 1}', b'{"reason": "x", "refused": []}', b"\xff" * 100, b"[" * 100_000])
def test_a_reason_that_is_none(data: bytes) -> None:
    """It was written elsewhere: whatever it is, it breaks nothing."""
    assert parse_reason(data).refused == {}
    assert parse_reason(reason_text(Refusal("why", {"a": "b"}))) == Refusal("why", {"a": "b"})


@pytest.mark.parametrize(
    "text", ["ssh://", "ssh://host", "ssh://host:0/x", "ssh://host:99999/x", "ssh://a b/x", "ssh://host/../x", "ssh://u:p@h/x"]
)  # fmt: skip
def test_addresses_that_are_none(text: str) -> None:
    """Each is refused in a line, and no password is repeated."""
    with pytest.raises(CommandError) as error:
        parse_ssh(text)
    assert ":p@" not in str(error.value)


def test_addresses() -> None:
    """User, port, and folders of the home."""
    found = parse_ssh("ssh://me@login.example:2222/scratch/place/")
    assert (found.host, found.path, found.user, found.port) == ("login.example", "/scratch/place", "me", 2222)
    found = parse_ssh("ssh://login/~/place")
    assert (found.host, found.path, found.user, found.port) == ("login", "place", None, None)
    assert parse_ssh("ssh://[::1]/x").host == "::1"


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"sent": "/x"}, "sent"), ({"send": 1}, "send"), ({"send": "x"}, "absolute path"), ({"receive": "/x"}, "receive"),
        ({"receive": ["x"]}, "absolute path"), ({"every": 0}, "every"), ({"every": True}, "every"), ({"bundle_size": "big"}, "size"),
        ({"send": "ssh://u:p@h/x"}, "a password is never taken"), ({"known_hosts": ""}, "known_hosts"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used(table: dict[str, Any], word: str) -> None:
    """They are named."""
    with pytest.raises(CommandError, match=word):
        parse(table, "/etc/simspool.toml")


def test_settings() -> None:
    """Paths of keys are relative to the file."""
    found = parse({"send": "ssh://h/x", "receive": ["/a", "/b/"], "ssh_key": "key", "bundle_size": "1 MB"}, "/etc/simspool.toml")
    assert (found.ssh_key, found.known_hosts, found.receive, found.bundle_size) == ("/etc/key", None, ("/a", "/b"), 1_000_000)
    assert not parse({}, "")


def test_a_place_that_others_write_is_said(ends: Ends) -> None:
    """Where no key is trusted."""
    ends.place.chmod(0o777)
    ends.receiver.turn()
    assert any("other users may put bundles into" in text for text in ends.said)


def test_a_relay_that_is_broken_disturbs_no_agent(tmp_path: Path, agent: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that cannot be used is an error of `agent run`, in one line."""
    (tmp_path / "simspool.toml").write_text('[relay]\nsend = "nowhere"\n')
    assert agent("run", "--spool", tmp_path / "spool") == 2
    assert "[relay] in " in agent.err
    assert json.dumps(agent.err).count("\\n") == 1
