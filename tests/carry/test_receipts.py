"""Receipts: what the far spool says is acknowledged at the origin, exactly that, writer by writer, whatever is lost, repeated or wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorded import add_file, begin, fill, whole
from sides import BUNDLE, CARRIED_BY, SERVER, A, Side, carry

from simspool.agent.carry import custody
from simspool.agent.carry.parts import NotTaken
from simspool.agent.carry.receipts import LIMIT, encode, make_receipt, parse_receipt
from simspool.agent.status import overview
from simspool.agent.targets.settings import TargetSettings
from simspool.agent.truth.books import books
from simspool.agent.truth.dead import letters
from simspool.spool import Writer, ids

B = TargetSettings("b", "simspool", "http://b")
BY_RECORD = TargetSettings("b", "mlflow", "http://b")


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Side]:
    with Side(tmp_path / "far") as made:
        made.serves(A, B, BY_RECORD)
        yield made


def brought(origin: Side, far: Side, *runs: str) -> None:
    """Ingest, carry and ingest there."""
    origin.take_in()
    carry(origin, far, *runs)
    far.take_in()


def noted(side: Side) -> dict[str, Any]:
    """Return all that receipts change in a catalog."""
    tables = ("cursors", "refused", "uploads", "ids", "given_up", "again")
    return {table: sorted(map(str, side.catalog.rows(f"SELECT * FROM {table}"))) for table in tables}


def amounts(side: Side) -> dict[str, int]:
    body = overview(side.catalog, side.spool, [CARRIED_BY])
    assert body["balanced"], body["imbalances"]
    [target] = body["targets"]
    return {key: target["records"][key] for key in ("recorded", "acknowledged", "waiting", "refused", "given_up")} | {
        "files": target["files"]["acknowledged"], "files_waiting": target["files"]["waiting"], "in_custody": target["in_custody"],
    }  # fmt: skip


def file(side: Side, run: str, writer: Writer, path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return add_file(side.spool, run, writer, path)


def changed(document: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    body = json.loads(document)
    change(body)
    return json.dumps(body).encode()


def test_custody_is_noted_and_only_what_is_delivered_is_acknowledged(origin: Side, far: Side, tmp_path: Path) -> None:
    run, writer = begin(origin.spool)
    fill(writer, 50)
    digest = file(origin, run, writer, tmp_path / "f", b"content")
    brought(origin, far, run)
    first = origin.apply(far.receipt(origin))
    assert (first.writers, first.records, first.files, first.custody) == (0, 0, 0, 2)
    assert amounts(origin) == {
        "recorded": 52, "acknowledged": 0, "waiting": 52, "refused": 0, "given_up": 0, "files": 0, "files_waiting": 1, "in_custody": 52,
    }  # fmt: skip
    assert custody.files(origin.catalog, SERVER, run) == {digest}
    assert custody.positions(origin.catalog, SERVER, run).keys() == {writer.id_text}
    far.deliver("a", run, {writer.id_text: 20})
    assert origin.apply(far.receipt(origin)).records == 20
    assert origin.mark(SERVER, writer.id_text) == 20
    assert (amounts(origin)["acknowledged"], amounts(origin)["in_custody"]) == (20, 32)
    far.deliver("a", run)
    assert origin.apply(far.receipt(origin)).files == 0  # records never wait for bytes
    far.deliver("a", run, blobs=[digest])
    assert origin.apply(far.receipt(origin)).files == 1
    assert (amounts(origin)["waiting"], amounts(origin)["files_waiting"]) == (0, 0)


def test_a_run_is_pruned_when_all_of_it_is_delivered_and_its_custody_goes_with_it(origin: Side, far: Side) -> None:
    run = whole(origin.spool, points=30)
    brought(origin, far, run)
    origin.apply(far.receipt(origin))
    assert custody.positions(origin.catalog, SERVER, run)
    assert origin.prune(SERVER) == []  # in custody is not delivered
    [writer] = far.recorded(run)
    far.deliver("a", run, {writer: 10})
    origin.apply(far.receipt(origin))
    assert origin.prune(SERVER) == []
    far.deliver("a", run)
    assert origin.apply(far.receipt(origin)).complete == 1
    assert origin.prune(SERVER) == [run]
    assert not os.path.exists(origin.spool.run(run).path)
    assert custody.positions(origin.catalog, SERVER, run) == {}
    again = origin.apply(far.receipt(origin))
    assert again.nothing_new
    assert not again.conflicts
    assert custody.positions(origin.catalog, SERVER, run) == {}


def test_receipts_that_come_late_or_twice_change_nothing_and_say_so(origin: Side, far: Side) -> None:
    run = whole(origin.spool)
    brought(origin, far, run)
    [writer] = far.recorded(run)
    early = far.receipt(origin)
    far.deliver("a", run, {writer: 40})
    middle = far.receipt(origin)
    far.deliver("a", run)
    last = far.receipt(origin)
    assert not origin.apply(last).late
    before = noted(origin)
    for document in (middle, early, last, early):
        applied = origin.apply(document)
        assert applied.nothing_new
        assert applied.late == (document is not last)
        assert noted(origin) == before


def test_what_a_late_receipt_adds_still_counts(origin: Side, far: Side) -> None:
    """A clock that was set back at the far spool makes new receipts look late."""
    run = whole(origin.spool)
    brought(origin, far, run)
    origin.apply(far.receipt(origin))
    far.deliver("a", run)
    document = changed(far.receipt(origin), lambda body: body.update(at=body["at"] - 3600))
    applied = origin.apply(document)
    assert applied.late
    assert applied.records == origin.recorded(run)[next(iter(origin.recorded(run)))]


def test_a_new_catalog_and_a_compacted_journal_have_all_of_it_again(origin: Side, far: Side, tmp_path: Path) -> None:
    run, writer = begin(origin.spool)
    fill(writer, 50)
    file(origin, run, writer, tmp_path / "f", b"content")
    brought(origin, far, run)
    far.deliver(
        "a", run, {writer.id_text: 30}, refused=[(writer.id_text, 7, "too odd")], blocked=[]
    )
    origin.apply(far.receipt(origin))
    before, seen = noted(origin), amounts(origin)
    assert seen["refused"] == 1
    origin.again(without_catalog=True)
    origin.take_in()
    assert (noted(origin), amounts(origin)) == (before, seen)
    origin.journal.close()
    origin.journal.compact()
    origin.again(without_catalog=True)
    origin.take_in()
    after = noted(origin)
    assert {k: v for k, v in after.items() if k != "cursors"} == {k: v for k, v in before.items() if k != "cursors"}
    assert amounts(origin) == seen
    assert custody.pinned(origin.catalog, SERVER) == far.spool.id


def test_receipts_for_another_spool_or_from_another_are_refused_and_nothing_is_changed(origin: Side, far: Side, tmp_path: Path) -> None:
    run = whole(origin.spool)
    brought(origin, far, run)
    far.deliver("a", run)
    with Side(tmp_path / "third") as third:
        third.serves(A)
        before = noted(third)
        with pytest.raises(NotTaken, match=f"is for the spool {origin.spool.id}.*is {third.spool.id}"):
            third.apply(far.receipt(origin))
        assert noted(third) == before
        with pytest.raises(NotTaken, match="made by the spool .* itself"):
            origin.apply(origin.receipt(origin))
        origin.apply(far.receipt(origin))
        carry(origin, third, run, full=True)
        third.take_in()
        third.deliver("a", run)
        before = noted(origin)
        with pytest.raises(NotTaken, match="agent target add OTHER bundle"):
            origin.apply(third.receipt(origin))
        assert noted(origin) == before
        assert origin.apply(third.receipt(origin), "other").records == 105  # a target of its own


@pytest.mark.parametrize("what", ["beyond", "chain", "same mark", "unknown writer", "unknown run"])
def test_a_writer_that_does_not_fit_is_reported_and_the_others_go_on(origin: Side, far: Side, what: str) -> None:
    run, sound = whole(origin.spool, "odd"), whole(origin.spool, "sound")
    brought(origin, far, run, sound)
    far.deliver("a", run)
    far.deliver("a", sound)
    [writer], [good] = far.recorded(run), far.recorded(sound)
    other = ids.to_text(ids.new_id())
    if what == "same mark":
        origin.apply(far.receipt(origin))

    def change(body: dict[str, Any]) -> None:
        delivered = body["runs"][run]["delivered"]
        mark, chain = delivered[writer]
        if what == "beyond":
            delivered[writer] = [mark + 1, chain]
        elif what in {"chain", "same mark"}:
            delivered[writer] = [mark, chain ^ 1]
        elif what == "unknown writer":
            body["runs"][run]["delivered"] = {other: [mark, chain]}
            body["runs"][run]["custody"] = {}
        else:
            body["runs"][ids.to_text(ids.new_id())] = body["runs"].pop(run)
        for one in body["runs"].values():
            one["complete"] = True

    applied = origin.apply(changed(far.receipt(origin), change))
    assert applied.conflicts.keys() == ({other} if what == "unknown writer" else {writer})
    assert origin.mark(SERVER, writer) == (origin.recorded(run)[writer] if what == "same mark" else 0)
    assert origin.mark(SERVER, good) == origin.recorded(sound)[good]
    assert applied.complete == 1
    if what != "same mark":
        assert origin.prune(SERVER) == [sound]


def test_refusals_come_with_receipts_and_go_with_later_ones(origin: Side, far: Side, tmp_path: Path) -> None:
    run, writer = begin(origin.spool)
    fill(writer, 10)
    digest = file(origin, run, writer, tmp_path / "f", b"content")
    second, stuck = begin(origin.spool)
    fill(stuck, 10)
    brought(origin, far, run, second)
    w, s = writer.id_text, stuck.id_text
    far.deliver("a", run, refused=[(w, 5, "a bad name")], refused_blobs=[(digest, "too large")])
    far.deliver("a", second, {s: 4}, blocked=[(s, "conflict")])
    applied = origin.apply(far.receipt(origin))
    assert (applied.refused, applied.records) == (3, 12 + 4)
    found = {letter.id: letter.reason for letter in letters(origin.catalog, [CARRIED_BY])}
    assert found == {f"{w}.5": "a: a bad name", f"file:{w}.12": "a: too large", s: "a: conflict"}
    assert amounts(origin)["refused"] == 1 + 7
    assert origin.apply(far.receipt(origin)).nothing_new
    # it is tried again there, and taken
    far.journal.receive("a", 1.0, taken=[(w, 5)], blobs=[digest])
    far.journal.reopen("a", [s])
    applied = origin.apply(far.receipt(origin))
    assert (applied.taken, applied.files) == (2, 1)
    assert letters(origin.catalog, [CARRIED_BY]) == []
    assert amounts(origin)["refused"] == 0


def test_what_the_user_gave_up_stays_given_up_and_lets_the_run_go(origin: Side, far: Side, tmp_path: Path) -> None:
    from simspool.agent.truth.dead import decide

    run, writer = begin(origin.spool)
    fill(writer, 10)
    digest = file(origin, run, writer, tmp_path / "f", b"content")
    assert writer.close({"status": "completed"})
    w = writer.id_text
    brought(origin, far, run)
    far.deliver("a", run, refused=[(w, 5, "a bad name")], refused_blobs=[(digest, "too large")])
    origin.apply(far.receipt(origin))
    assert origin.prune(SERVER) == []
    assert decide(origin.catalog, origin.journal, "retry", [(SERVER, [f"{w}.5"])]) == 0  # it is sent again on the far side
    assert decide(origin.catalog, origin.journal, "drop", [(SERVER, [f"{w}.5", f"file:{w}.12"])]) == 2
    assert origin.apply(far.receipt(origin)).nothing_new
    assert amounts(origin)["given_up"] == 1
    assert origin.prune(SERVER) == [run]


def test_what_the_far_side_gave_up_is_a_refusal_here(origin: Side, far: Side) -> None:
    run, writer = begin(origin.spool)
    fill(writer, 10)
    brought(origin, far, run)
    far.deliver("a", run, refused=[(writer.id_text, 5, "a bad name")])
    far.journal.give_up("a", 1.0, [(writer.id_text, 5, "", "a bad name")])
    origin.apply(far.receipt(origin))
    [letter] = letters(origin.catalog, [CARRIED_BY])
    assert letter.reason == "a: given up there: a bad name"


def test_one_content_in_two_runs_is_acknowledged_for_the_run_that_was_carried_only(origin: Side, far: Side, tmp_path: Path) -> None:
    first, one = begin(origin.spool, "first")
    second, two = begin(origin.spool, "second")
    digest = file(origin, first, one, tmp_path / "f", b"the same")
    assert file(origin, second, two, tmp_path / "g", b"the same") == digest
    brought(origin, far, first)
    far.deliver("b", first, blobs=[f"{one.id_text}.2"])
    applied = origin.apply(far.receipt(origin, BY_RECORD))
    assert applied.files == 1
    files = books(origin.catalog, [CARRIED_BY]).files
    assert (files[first]["bundle"].acknowledged, files[second]["bundle"].waiting) == (1, 1)


def test_a_file_is_acknowledged_with_the_record_that_names_it_and_not_before(origin: Side, far: Side, tmp_path: Path) -> None:
    run, writer = begin(origin.spool)
    fill(writer, 10)
    file(origin, run, writer, tmp_path / "f", b"content")
    brought(origin, far, run)
    far.deliver("a", run, {writer.id_text: 5})
    document = changed(far.receipt(origin), lambda body: body["runs"][run].update(stored=[f"{writer.id_text}.12"]))
    assert origin.apply(document).files == 0
    assert amounts(origin)["files_waiting"] == 1


def test_delivered_is_what_every_target_that_counts_there_has(origin: Side, far: Side, tmp_path: Path) -> None:
    run, writer = begin(origin.spool)
    digest = file(origin, run, writer, tmp_path / "f", b"content")
    fill(writer, 20)
    brought(origin, far, run)
    w = writer.id_text
    far.deliver("a", run, blobs=[digest])
    far.deliver("b", run, {w: 8})
    assert origin.apply(far.receipt(origin, A, replace(B, required=False))).files == 1
    assert origin.mark(SERVER, w) == 22
    body = make_receipt(far.spool, far.catalog, [A, B], origin.spool.id)
    assert body["runs"][run]["delivered"][w][0] == 8
    assert body["runs"][run]["stored"] == []
    assert not body["runs"][run]["complete"]
    assert origin.apply(encode(body)).nothing_new  # marks only grow
    never = TargetSettings("c", "simspool", "http://c")
    assert make_receipt(far.spool, far.catalog, [A, never], origin.spool.id)["runs"][run]["delivered"] == {}
    assert make_receipt(far.spool, far.catalog, [], origin.spool.id)["runs"][run]["delivered"] == {}
    assert make_receipt(far.spool, far.catalog, [A], ids.to_text(ids.new_id()))["runs"] == {}


def test_targets_there_that_have_different_records_are_no_delivery(origin: Side, far: Side) -> None:
    run, writer = begin(origin.spool)
    fill(writer, 20)
    brought(origin, far, run)
    far.deliver("a", run)
    far.deliver("b", run)
    with far.catalog.transaction() as db:
        db.execute("UPDATE cursors SET chain = chain + 1 WHERE server = 'b'")
    applied = origin.apply(far.receipt(origin, A, B))
    assert applied.records == 0
    [letter] = letters(origin.catalog, [CARRIED_BY])
    assert "different records" in letter.reason


@pytest.mark.parametrize("without_catalog", [False, True])
def test_a_run_that_was_pruned_there_is_covered_by_the_next_receipt_even_when_all_before_were_lost(
    origin: Side, far: Side, tmp_path: Path, without_catalog: bool
) -> None:
    run, writer = begin(origin.spool)
    kept = file(origin, run, writer, tmp_path / "f", b"kept")
    dropped = file(origin, run, writer, tmp_path / "g", b"given up")
    assert writer.close({"status": "completed"})
    brought(origin, far, run)
    far.deliver("a", run, blobs=[kept], refused_blobs=[(dropped, "too large")])
    assert far.prune("a") == []
    far.journal.give_up("a", 1.0, [("", 0, dropped, "too large")])
    assert far.prune("a") == [run]
    far.again(without_catalog=without_catalog)
    far.serves(A, B)
    far.take_in()
    added = far.receipt(origin, A, B)  # a target that came after it has nothing of it, and takes back nothing
    for document in (added, far.receipt(origin)):
        applied = origin.apply(document)
        assert not applied.conflicts
    assert origin.mark(SERVER, writer.id_text) == 4
    files = books(origin.catalog, [CARRIED_BY]).files[run]["bundle"]
    assert (files.acknowledged, files.refused, files.waiting) == (1, 1, 0)
    with Side(tmp_path / "other") as other:
        assert run not in json.loads(far.receipt(other))["pruned"]


def test_a_far_spool_that_lost_something_is_brought_it_again(origin: Side, far: Side) -> None:
    run, writer = begin(origin.spool)
    fill(writer, 10)
    brought(origin, far, run)
    little = far.receipt(origin)
    fill(writer, 10)
    brought(origin, far, run)
    much = far.receipt(origin)
    origin.apply(much)
    before = custody.positions(origin.catalog, SERVER, run)
    origin.apply(little)
    assert custody.positions(origin.catalog, SERVER, run) == before  # late: it was true once
    at = parse_receipt(much).at + 1
    applied = origin.apply(changed(little, lambda body: body.update(at=at)))
    assert applied.custody == 1
    assert custody.positions(origin.catalog, SERVER, run) == parse_receipt(little).runs[run].custody


def test_a_run_whose_folder_somebody_deleted_is_reported(origin: Side, far: Side) -> None:
    run, sound = whole(origin.spool), whole(origin.spool)
    brought(origin, far, run, sound)
    far.deliver("a", run)
    far.deliver("a", sound)
    shutil.rmtree(origin.spool.run(run).path)
    [writer], [good] = far.recorded(run), far.recorded(sound)
    document = far.receipt(origin)
    assert "is gone from" in origin.apply(document).conflicts[writer]
    assert origin.mark(SERVER, good) == 105
    origin.again(without_catalog=True)
    origin.take_in()
    assert "is not in this spool" in origin.apply(document).conflicts[writer]


def test_applied_again_it_completes_what_a_full_disk_left_undone(origin: Side, far: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    run = whole(origin.spool)
    brought(origin, far, run)
    far.deliver("a", run)
    document = far.receipt(origin)
    with monkeypatch.context() as patch:

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(origin.journal, "receive", full)
        with pytest.raises(OSError, match="No space"):
            origin.apply(document)
    assert origin.prune(SERVER) == []
    assert origin.apply(document).records == 105
    assert origin.prune(SERVER) == [run]


# ------------------------------------------------------------------ the document


def test_a_document_is_the_same_when_read_again(origin: Side, far: Side) -> None:
    run = whole(origin.spool)
    brought(origin, far, run)
    far.deliver("a", run)
    document = far.receipt(origin)
    receipt = parse_receipt(document)
    assert (receipt.origin, receipt.far) == (origin.spool.id, far.spool.id)
    assert [t["name"] for t in receipt.targets] == ["a"]
    assert receipt.runs[run].complete
    assert json.dumps(json.loads(document), sort_keys=True, separators=(",", ":")).encode() == document


@pytest.mark.parametrize(
    "document",
    [
        b"", b"{}", b"[]", b"null", b"\xff", b'{"simspool-receipt":true}', b'{"simspool-receipt":0}', b'{"simspool-receipt":1}',
        b'{"simspool-receipt":NaN}', b"[" * 100_000, b'{"simspool-receipt":' * 50_000, b"9" * 10_000,
        b'{"simspool-receipt":1,"x":[' + b"[]," * 5_000_000 + b"[]]}", b" " * (LIMIT + 1),
    ],
    ids=lambda document: f"{document[:24]!r}+{len(document)}",
)  # fmt: skip
def test_what_is_no_receipt_is_refused_with_a_reason(document: bytes) -> None:
    with pytest.raises(NotTaken, match="this is no receipt"):
        parse_receipt(document)


def test_a_newer_version_says_so() -> None:
    with pytest.raises(NotTaken, match="upgrade simspool"):
        parse_receipt(b'{"simspool-receipt":2}')


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("id",), 5), (("for",), "../.."), (("from",), "x"), (("at",), {"$float": "nan"}), (("at",), -1), (("at",), "now"), (("runs",), []),
        (("runs", "../x"), {}), (("pruned",), {"x": {}}), (("targets",), {}), (("targets", 0), 5),
        (("runs", "RUN", "delivered", "W"), [1]), (("runs", "RUN", "delivered", "W"), [-1, 5]),
        (("runs", "RUN", "delivered", "W"), [1, 1 << 63]),
        (("runs", "RUN", "delivered", "W"), [True, 5]), (("runs", "RUN", "delivered", "W"), [1.5, 5]),
        (("runs", "RUN", "custody", "W"), [1, 1024, "zz", False]), (("runs", "RUN", "custody", "W"), [0, 1024, "0" * 64, False]),
        (("runs", "RUN", "custody", "W"), [1, 1024, "0" * 64, 1]), (("runs", "RUN", "stored"), ["x"]), (("runs", "RUN", "stored"), ["W.0"]),
        (("runs", "RUN", "stored"), ["W.٣"]), (("runs", "RUN", "stored"), [["W.1"]]), (("runs", "RUN", "files"), ["A" * 64]),
        (("runs", "RUN", "refused"), [["W", 1]]), (("runs", "RUN", "refused"), [["W", 1, "x" * 3000]]),
        (("runs", "RUN", "refused_files"), [["W.1", None]]), (("runs", "RUN", "blocked"), {"W": 5}),
    ],
    ids=repr,
)  # fmt: skip
def test_a_document_with_something_wrong_in_it_is_refused_as_a_whole(origin: Side, far: Side, place: tuple[Any, ...], value: Any) -> None:
    run = whole(origin.spool, points=5)
    brought(origin, far, run)
    far.deliver("a", run)
    [writer] = far.recorded(run)
    names = {"RUN": run, "W": writer}

    def change(body: dict[str, Any]) -> None:
        at: Any = body
        for part in place[:-1]:
            at = at[names.get(part, part)]
        at[names.get(place[-1], place[-1])] = json.loads(json.dumps(value).replace("W.", f"{writer}.").replace('"W"', f'"{writer}"'))

    before = noted(origin)
    with pytest.raises(NotTaken, match="this is no receipt"):
        origin.apply(changed(far.receipt(origin), change))
    assert noted(origin) == before


def test_a_receipt_for_the_target_of_a_name_is_under_that_name(origin: Side, far: Side) -> None:
    run = whole(origin.spool)
    brought(origin, far, run)
    far.deliver("a", run)
    assert BUNDLE.address == SERVER
    origin.apply(far.receipt(origin), "elsewhere")
    assert origin.catalog.rows("SELECT DISTINCT server FROM cursors") == [("bundle:elsewhere",)]
