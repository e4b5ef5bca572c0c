"""What leaves the site in a bundle is looked at before: secrets in what scripts told, and the log of what was decided."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from recorded import add_file, begin

from simspool.agent.carry.outgoing import Outgoing
from simspool.agent.carry.parts import Position
from simspool.agent.catalog import Catalog
from simspool.agent.cli.view import open_view
from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.agent.leaving.gate import Gate
from simspool.agent.leaving.hint import Hint
from simspool.agent.leaving.settings import Leaving, LeavingSettings
from simspool.sdk.errors import ConfigError
from simspool.sdk.redaction import Redactor
from simspool.spool import Kind, Spool

KEY = "ghp_" + "a1B2" * 9


def made(spool: Spool, tmp_path: Path) -> tuple[str, str]:
    """A run full of secrets, and one with none."""
    bad, writer = begin(spool, "bad", metadata={"api_key": "s3cr3t-of-mine", "lr": 0.1, "note": "x"}, tags=["private"], folder="/a/b")
    writer.record(Kind.EVENT, {"message": f"cloned https://me:{KEY}@host/x"})
    writer.record(Kind.EVENT, {"message": "token = next(tokens); password = getpass()"})
    writer.record(Kind.METADATA, {"metadata": {"db": {"password": "hunter2!"}}})
    (tmp_path / ".env").write_text("# settings\nMODE=fast\nDB_PASSWORD=k9Jx72mQ0z\n")
    (tmp_path / "id").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\n")
    (tmp_path / "raw.bin").write_bytes(b"\0\1" + KEY.encode())
    add_file(spool, bad, writer, tmp_path / ".env")
    add_file(spool, bad, writer, tmp_path / "id")
    add_file(spool, bad, writer, tmp_path / "raw.bin")
    writer.close({"status": "completed"})
    good, writer = begin(spool, "good", metadata={"max_tokens": 512, "author": "me"}, folder="/c")
    writer.record(Kind.EVENT, {"message": "step 1 of 7, key figures follow: loss=0.3"})
    writer.close({"status": "completed"})
    return bad, good


def let(gate: Gate, spool: Spool, catalog: Catalog, runs: set[str]) -> None:
    outgoing = Outgoing(spool, catalog, "bundle:x", runs)
    outgoing.runs()
    gate.let(catalog, outgoing, runs)


def found_in(spool: Spool) -> list[dict[str, str]]:
    """What the last line of the log has found."""
    found = json.loads(Path(spool.agent, "leaving.jsonl").read_text().splitlines()[-1])["found"]
    return [dict(one) for one in found]


def test_what_is_found_and_what_is_not(spool: Spool, tmp_path: Path) -> None:
    bad, good = made(spool, tmp_path)
    said: list[str] = []
    with open_view(spool) as catalog:
        let(Gate(spool, Leaving(), "bundle", said.append), spool, catalog, {good})
        assert not said
        let(Gate(spool, Leaving(), "bundle", said.append), spool, catalog, {bad, good})
    found = found_in(spool)
    assert all((one["run"], one["name"]) == (bad, "bad") for one in found)
    places = {(one["where"].partition(" (record")[0], one["what"]) for one in found}
    assert places == {
        ("metadata 'api_key'", "value of api_key"), ("event", "user in an address"), ("metadata 'password'", "value of password"),
        ("file '.env', line 3", "value of DB_PASSWORD"), ("file 'id', line 1", "private key"),
    }  # fmt: skip
    assert len(said) == 5
    assert KEY not in str(said) + str(found)
    assert "hunter2" not in str(said) + str(found)


def test_what_was_let_go_is_not_looked_at_again_and_what_is_new_is(spool: Spool, tmp_path: Path) -> None:
    run, writer = begin(spool, "goes on")
    writer.record(Kind.EVENT, {"message": "password=a1b2c3d4e5"})
    (tmp_path / ".env").write_text("DB_PASSWORD=k9Jx72mQ0z\n")
    add_file(spool, run, writer, tmp_path / ".env")
    said: list[str] = []
    gate = Gate(spool, Leaving(), "relay", said.append)
    with open_view(spool) as catalog:
        let(gate, spool, catalog, {run})
    assert len(said) == 2
    with open_view(spool) as catalog:
        let(gate, spool, catalog, {run})
    assert len(said) == 2
    assert len(Path(spool.agent, "leaving.jsonl").read_text().splitlines()) == 1  # the decision was made before
    writer.record(Kind.EVENT, {"message": "token=f6g7h8i9j0"})
    with open_view(spool) as catalog:
        let(gate, spool, catalog, {run})
    assert [one["what"] for one in found_in(spool)] == ["value of token"]
    writer.close({"status": "completed"})


def test_what_was_refused_is_looked_at_again(spool: Spool) -> None:
    run, writer = begin(spool, "bad")
    writer.record(Kind.EVENT, {"message": "password=a1b2c3d4e5"})
    writer.close({"status": "completed"})
    gate = Gate(spool, Leaving({"secrets": "refuse"}), "relay", lambda _: None)
    for _ in range(2):
        with open_view(spool) as catalog, pytest.raises(CommandError, match="1 places look like secrets"):
            let(gate, spool, catalog, {run})


def test_what_the_other_side_has_is_not_looked_at(spool: Spool, tmp_path: Path) -> None:
    """It has left: a bundle carries what is behind a receipt, and that is what is searched."""
    run, writer = begin(spool, "goes on")
    writer.record(Kind.EVENT, {"message": "password=a1b2c3d4e5"})
    with open_view(spool) as catalog:
        at = catalog.one('SELECT segment, "offset", id FROM writers WHERE run = ?', (run,))
    assert at is not None
    writer.record(Kind.EVENT, {"message": "token=f6g7h8i9j0"})
    writer.close({"status": "completed"})
    with open_view(spool) as catalog:
        outgoing = Outgoing(spool, catalog, "bundle:x")
        outgoing._basis = lambda _: {at[2]: Position(at[0], at[1], "")}  # type: ignore[method-assign]
        outgoing.runs()
        Gate(spool, Leaving(), "bundle", lambda _: None).let(catalog, outgoing, {run})
    assert [one["what"] for one in found_in(spool)] == ["value of token"]


@pytest.mark.parametrize("size", [1, 17 << 20, 33 << 20])
def test_a_secret_is_found_wherever_it_lies_in_a_large_run(spool: Spool, size: int) -> None:
    """Behind much else, across the pieces in which a segment is read, and behind damage."""
    run, writer = begin(spool, "large")
    for number in range(0, size, 1 << 19):
        writer.record(Kind.EVENT, {"message": f"{number} " + "x" * (1 << 19)})
    writer.record(Kind.EVENT, {"message": "token=f6g7h8i9j0"})
    for number in range(0, size, 1 << 19):
        writer.record(Kind.EVENT, {"message": f"{number} " + "y" * (1 << 19)})
    writer.record(Kind.EVENT, {"message": "password=a1b2c3d4e5"})
    writer.close({"status": "completed"})
    with open_view(spool) as catalog:
        let(Gate(spool, Leaving(), "bundle", lambda _: None), spool, catalog, {run})
        assert [one["what"] for one in found_in(spool)] == ["value of token", "value of password"]
        for path in Path(spool.path).rglob("*.seg"):
            path.chmod(0o600)
            with path.open("r+b") as file:
                file.seek(1024 + 8)
                file.write(b"\xff" * (1 << 18 if size > 1 else 8))
        let(Gate(spool, Leaving(), "bundle", lambda _: None), spool, catalog, {run})
    assert [one["what"] for one in found_in(spool)] == ["value of token", "value of password"]


def test_the_policy_decides_and_is_logged(spool: Spool, tmp_path: Path) -> None:
    bad, good = made(spool, tmp_path)
    said: list[str] = []

    def leave(**table: object) -> None:
        with open_view(spool) as catalog:
            let(Gate(spool, Leaving(table), "bundle", said.append), spool, catalog, {bad, good})

    leave()
    assert len(said) == 5
    leave(secrets="off")
    assert len(said) == 5
    with pytest.raises(CommandError, match="5 places look like secrets") as refused:
        leave(secrets="refuse")
    assert refused.value.exit_code == ExitCode.ERROR
    for allow in (["tag:private"], ["folder:/a/*"], ["run:b*"], [f"run:{bad}"]):
        leave(secrets="refuse", allow=allow)
    with pytest.raises(CommandError, match="3 places"):
        leave(secrets="refuse", allow=["artifact:.env", "artifact:i*"])
    leave(only=["folder:/*"])
    with pytest.raises(CommandError, match=f"1 runs may not leave .*{good}"):
        leave(only=["folder:/a/*"])
    path = Path(spool.agent, "leaving.jsonl")
    assert path.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["verdict"] for line in lines] == ["left", "left", "refused", *["left"] * 4, "refused", "left", "refused"]
    assert lines[0]["runs"] == sorted([bad, good])
    assert len(lines[0]["found"]) == 5
    assert lines[-1]["not_allowed"] == [good]
    assert KEY not in path.read_text()


def test_without_the_log_nothing_leaves(spool: Spool, tmp_path: Path) -> None:
    bad, _ = made(spool, tmp_path)
    with open_view(spool) as catalog:
        os.symlink("/etc/passwd", os.path.join(spool.agent, "leaving.jsonl"))
        with pytest.raises(CommandError, match="cannot be written"):
            let(Gate(spool, Leaving(), "bundle", lambda _: None), spool, catalog, {bad})


@pytest.mark.parametrize(
    "table", [{"secret": "off"}, {"secrets": "maybe"}, {"allow": "x"}, {"allow": ["x"]}, {"allow": ["host:x"]}, {"only": ["artifact:x"]}]
)
def test_a_table_that_is_wrong(table: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"\[leaving\]"):
        LeavingSettings.of(table)


PIECES = [
    "password", "pass_wd", "Pass-Word", "passphrase", "secret", "SECRETS", "api_key", "apiKey", "SOLVER_KEY", "k_e_y", "token", "auth",
    "Authorization", "bearer", "cookie", "sig", "pat", "signature", "credentials", "passwort", "--token", "-password", "=", ":", " : ", " ",
    "\n", "\t", "\u00a0", '"', "'", "\\", "x", "hunter2!", "a1B2c3D4e5",
    "Bearer ", "https://", "ftp://", "me:pw@", "host/", "eyJ", ".", "-",
    "_", "AKIA", "A1B2C3D4E5F6G7H8", "ghp_", "a1B2" * 9, "glpat-", "sk-", "sk_live_", "xoxb-", "hf_", "AIza", "pypi-", "npm_",
    "-----BEGIN RSA PRIVATE KEY-----", "-----END RSA PRIVATE KEY-----", "own-", "\ud800", "\u00fc",
]  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(some.lists(some.one_of(some.sampled_from(PIECES), some.text(max_size=3)), min_size=1, max_size=12).map("".join))
def test_nothing_that_is_a_secret_is_passed_over_quickly(text: str) -> None:
    """Neither in plain text nor as the spool has it; neither as a text nor under a name."""
    redactor = Redactor(prefixes=["own-"])
    hint = Hint(redactor)
    forms = [text.encode(errors="replace"), json.dumps(text).encode(), json.dumps(text, ensure_ascii=False).encode(errors="replace")]
    if redactor.find(text):
        assert all(map(hint.passes, forms))
    if redactor.value(text, "v4lue-of-it") != "v4lue-of-it":
        for ascii_only in (True, False):
            body = json.dumps({"set": {text: "v4lue-of-it"}}, separators=(",", ":"), ensure_ascii=ascii_only)
            assert hint.passes(body.encode(errors="replace"))
