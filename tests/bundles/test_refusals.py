"""A30, A31, A16: bundles that somebody made up, altered or brought to the wrong place are refused with a reason; nothing is changed."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from command import Command
from made import apply, create, forge, manifest_of, receipt, take, tree, write_manifest
from recorded import add_file, begin, fill, whole

from simspool.agent.bundles import blocks, manifest, signing
from simspool.agent.bundles.errors import BadBundle
from simspool.spool import Spool, ids, open_spool


@pytest.fixture
def bundle(origin: Spool, agent: Command, tmp_path: Path) -> Path:
    """A bundle of two runs with a file each, in two volumes."""
    for n in range(2):
        run, writer = begin(origin, f"run-{n}")
        fill(writer, 30)
        path = tmp_path / f"result-{n}"
        path.write_bytes(os.urandom(40_000))
        add_file(origin, run, writer, path)
        assert writer.close({"status": "completed"})
    return Path(create(agent, origin, "--volume-size", "66 kB")["path"])


def refused(agent: Command, far: Spool, bundle: Path, code: int, reason: str) -> None:
    """An import ends with this code and says why; the spool is as it was."""
    before = tree(far.path)
    assert agent("bundle", "import", "--spool", far.path, bundle) == code, agent.out + agent.err
    assert reason in agent.err, agent.err
    assert tree(far.path) == before


def members(body: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [m for m in body["members"] if m["kind"] == kind]


def _set(kind: str, index: int, /, **values: object) -> Callable[[dict[str, Any]], object]:
    return lambda body: members(body, kind)[index].update(values)


def _twice(kind: str) -> Callable[[dict[str, Any]], object]:
    """A member is there twice, and the volumes' sizes fit."""

    def change(body: dict[str, Any]) -> None:
        one = members(body, kind)[0]
        body["members"].insert(body["members"].index(one) + 1, copy.deepcopy(one))
        body["volumes"][-1] += one["stored"]

    return change


def _case_twin(body: dict[str, Any]) -> None:
    first, second = members(body, "run")
    twin = first["run"].swapcase()
    for m in members(body, "blob"):
        m["runs"] = [twin if r == second["run"] else r for r in m["runs"]]
    second["run"] = twin


def _shift(body: dict[str, Any]) -> None:
    """One member ends later, the next one begins there: what would be an overlap elsewhere."""
    at = body["members"].index(members(body, "blob")[0])
    body["members"][at]["stored"] -= 1
    body["members"][at + 1]["stored"] += 1


FORGERIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a path for a run": _set("run", 0, run="../../../../etc/cron.d/"),
    "an absolute path for a run": _set("run", 0, run="/tmp/elsewhere"),
    "a path for a writer": _set("segment", 0, writer="../" * 7 + "x"),
    "NUL in a writer": _set("segment", 0, writer="\0" * 22),
    "a path for a digest": _set("blob", 0, sha256="../" * 21 + "x"),
    "a path for a blob's run": _set("blob", 0, runs=["../" * 7 + "x"]),
    "a digest in capitals": _set("blob", 0, sha256="A" * 64),
    "a link": _set("blob", 0, kind="symlink"),
    "a device": _set("blob", 0, kind="device"),
    "an unknown field": _set("blob", 0, path="x"),
    "an encrypted member": _set("blob", 0, encrypted=True),
    "a run twice": _twice("run"),
    "a blob twice": _twice("blob"),
    "a part of a segment twice": _twice("segment"),
    "ids that differ in case only": _case_twin,
    "a blob of a run that is not there": _set("blob", 0, runs=[ids.to_text(ids.new_id())]),
    "a blob of no run": _set("blob", 0, runs=[]),
    "a blob of a run twice": lambda body: members(body, "blob")[0].update(runs=members(body, "blob")[0]["runs"] * 2),
    "a negative size": _set("blob", 0, size=-1),
    "a size that is no number": _set("blob", 0, size="40000"),
    "a size that is true": _set("blob", 0, size=True),
    "a size over all disks": _set("blob", 0, size=1 << 60),
    "a huge state of a run": _set("run", 0, size=1 << 40),
    "a segment over its limit": _set("segment", 0, size=1 << 30, end=(1 << 30)),
    "a segment whose size is not its bytes": lambda body: members(body, "segment")[0].update(size=members(body, "segment")[0]["size"] + 1),
    "a segment that ends before it begins": _set("segment", 0, start=5000, end=2000),
    "a segment over its head": _set("segment", 0, start=0),
    "a segment of number 0": _set("segment", 0, number=0),
    "stored bytes that fit no size": _set("blob", 0, stored=3),
    "more stored than it can be": lambda body: members(body, "blob")[0].update(stored=members(body, "blob")[0]["size"] + 100),
    "trailing bytes": lambda body: body["volumes"].append(100),
    "a volume of no bytes": lambda body: body["volumes"].insert(0, 0),
    "ten thousand volumes": lambda body: body.update(volumes=[1] * 10_000),
    "members before their run": lambda body: body["members"].reverse(),
    "members that are no list": lambda body: body.update(members={"0": body["members"][0]}),
    "a member that is no object": lambda body: body["members"].append([]),
    "no members": lambda body: body.pop("members"),
    "no origin": lambda body: body.update({"from": ""}),
    "a time that is none": lambda body: body.update(created=1e300),
    "a target with a path": lambda body: body.update(target="../x"),
    "another format's word": lambda body: body.update({"simspool-bundle": "1"}),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a30_a_manifest_that_lies(far: Spool, agent: Command, bundle: Path, what: str) -> None:
    """What no bundle can say is refused before anything is read of its volumes."""
    forge(bundle, FORGERIES[what])
    refused(agent, far, bundle, 8, "this is no bundle")


def test_a30_members_that_overlap(far: Spool, agent: Command, bundle: Path) -> None:
    """Where one member ends the next one begins; moved, neither is what its digest says."""
    forge(bundle, _shift)
    agent("bundle", "import", "--spool", far.path, bundle)
    assert "altered: copy it again" in agent.err
    digests = {m["sha256"] for m in members(manifest_of(bundle), "blob")}
    assert not digests <= {Path(name).name for name in tree(far.path)}


def test_a30_a_huge_number_of_members(far: Spool, agent: Command, bundle: Path) -> None:
    """They are counted before they are parsed."""
    text = json.dumps(manifest_of(bundle)).encode()
    write_manifest(bundle, text.replace(b'"members": [', b'"members": [' + b"{}," * 250_000))
    refused(agent, far, bundle, 8, "over 200000 members")


def test_a30_a_manifest_without_end(far: Spool, agent: Command, bundle: Path) -> None:
    """It is not even read."""
    os.truncate(bundle / "manifest.json", manifest.LIMIT + 1)
    refused(agent, far, bundle, 8, "is over")


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"a":1,"a":2}', b'{"simspool-bundle":NaN}', b'{"a":1e999}', b'"\\ud800"', b"1", b"", b"\xff"]
)
def test_a30_a_manifest_that_is_something_else(far: Spool, agent: Command, bundle: Path, text: bytes) -> None:
    """Deep, doubled, infinite: none of it is a manifest."""
    write_manifest(bundle, text)
    refused(agent, far, bundle, 8, "manifest")


def test_a30_a_bomb(far: Spool, agent: Command, bundle: Path) -> None:
    """A block that would be larger than the manifest says is never decompressed."""
    body = manifest_of(bundle)
    bomb = zstandard.ZstdCompressor(level=3).compress(bytes(64 << 20))
    run = members(body, "run")[0]
    stored = struct.pack(">I", len(bomb)) + bomb
    run.update(size=len(bomb) + 1000, stored=len(stored), sha256="0" * 64)
    body["members"], body["volumes"] = [run], [len(stored)]
    write_manifest(bundle, body)
    (bundle / "volume-0001").write_bytes(stored)
    (bundle / "volume-0002").unlink()
    refused(agent, far, bundle, 8, "a block is not of the size that it should have")


def test_a16_blocks_are_bounded() -> None:
    """Frames without a size, with another one, with a large window, with a dictionary, with bytes behind: none is more than was said."""
    content = b"x" * 10_000
    sizeless = zstandard.ZstdCompressor(write_content_size=False).compress(content)
    wide = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=27)).compressobj()
    streamed = wide.compress(content) + wide.flush()
    (_, right), (_, longer) = blocks.pack(content), blocks.pack(content + b"x")
    for stored in (sizeless, streamed, right + b"x", longer, b"", b"\x28\xb5\x2f\xfd", os.urandom(100)):
        with pytest.raises(BadBundle):
            blocks.unpack(stored, len(content))
    assert blocks.unpack(right, len(content)) == content


@pytest.mark.parametrize("number", [1, 2])
def test_a_volume_that_was_cut(far: Spool, agent: Command, bundle: Path, number: int) -> None:
    """Sizes are compared before anything is taken."""
    path = bundle / f"volume-000{number}"
    os.truncate(path, path.stat().st_size - 1)
    refused(agent, far, bundle, 8, "it was cut")


def test_a_volume_with_bytes_behind(far: Spool, agent: Command, bundle: Path) -> None:
    """Trailing data belongs to no member."""
    with open(bundle / "volume-0002", "ab") as f:
        f.write(b"more")
    refused(agent, far, bundle, 8, "it was altered")


@pytest.mark.parametrize("name", ["manifest.json", "volume-0001"])
@pytest.mark.parametrize("what", ["link", "fifo", "folder"])
def test_a30_what_is_no_file(far: Spool, agent: Command, bundle: Path, tmp_path: Path, name: str, what: str) -> None:
    """A bundle's files are files: links are not followed, pipes are not waited for."""
    path = bundle / name
    path.rename(tmp_path / "moved")
    if what == "link":
        path.symlink_to(tmp_path / "moved")
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    refused(agent, far, bundle, 8, "is not a regular file")


def test_files_that_the_manifest_does_not_name(far: Spool, agent: Command, bundle: Path) -> None:
    """They are not looked at."""
    (bundle / "volume-0099").write_bytes(b"x")
    (bundle / "..hidden").symlink_to("/etc/passwd")
    os.mkfifo(bundle / "pipe")
    [taken] = take(agent, far, bundle)
    assert taken["runs"] == 2


def test_a31_an_altered_member(far: Spool, agent: Command, bundle: Path) -> None:
    """It is not taken, and named with its volume; the members that are right are."""
    body = manifest_of(bundle)
    blob = members(body, "blob")[1]
    at = sum(m["stored"] for m in body["members"][: body["members"].index(blob)])
    volume, size = (bundle / "volume-0001", body["volumes"][0])
    at, volume = (at + 20_000, volume) if at + 20_000 < size else (at + 20_000 - size, bundle / "volume-0002")
    data = bytearray(volume.read_bytes())
    data[at] ^= 1
    volume.write_bytes(data)
    [taken] = take(agent, far, bundle, code=8)
    assert blob["sha256"][:12] in taken["altered"][0]
    assert volume.name in taken["altered"][0]
    assert taken["new_files"] == 1
    assert not any(blob["sha256"] in name for name in tree(far.path))
    assert not any("tmp" in name for name in tree(far.path))


def test_a31_an_altered_manifest(far: Spool, agent: Command, bundle: Path) -> None:
    """Its own digest tells."""
    path = bundle / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"target":"bundle"', b'"target":"bundlf"'))
    refused(agent, far, bundle, 8, "the manifest is altered")


@pytest.mark.parametrize("what", ["nothing", "file", "folder"])
def test_what_is_no_bundle(far: Spool, agent: Command, tmp_path: Path, what: str) -> None:
    """It says so."""
    path = tmp_path / "x.bundle"
    if what == "file":
        path.write_bytes(b"PK\x03\x04")
    elif what == "folder":
        path.mkdir()
    refused(agent, far, path, 8, "is no bundle")


def test_a31_a_bundle_for_another_spool(origin: Spool, far: Spool, agent: Command, tmp_path: Path, bundle: Path) -> None:
    """What builds on a receipt is for the spool that gave it; with --full it is for any."""
    take(agent, far, bundle)
    apply(agent, origin, receipt(agent, far))
    whole(origin, "later")
    other = open_spool(tmp_path / "other", create=True)
    second = Path(create(agent, origin)["path"])
    assert manifest_of(second)["to"] == far.id
    refused(agent, other, second, 4, "builds on what the spool")
    [taken] = take(agent, other, create(agent, origin, "--full")["path"])
    assert taken["runs"] == 3


def test_a_bundle_brought_back_to_where_it_was_made(origin: Spool, agent: Command, bundle: Path) -> None:
    """It is for the other side."""
    refused(agent, origin, bundle, 4, "was made from this very spool")


def test_a31_a_run_of_another_origin(origin: Spool, far: Spool, agent: Command, tmp_path: Path, bundle: Path) -> None:
    """A run that came from one spool is not added to by another; the others of the bundle are taken."""
    take(agent, far, bundle)
    forge(bundle, lambda body: body.update({"from": ids.to_text(ids.new_id())}))
    before = tree(far.path)
    [taken] = take(agent, far, bundle, code=4)
    assert len(taken["refused"]) == 2
    assert all(origin.id in why for why in taken["refused"].values())
    assert tree(far.path) == before


def test_a_newer_format(far: Spool, agent: Command, bundle: Path) -> None:
    """It is left alone."""
    forge(bundle, lambda body: body.update({"simspool-bundle": 2}))
    refused(agent, far, bundle, 6, "upgrade simspool")


def test_no_room(far: Spool, agent: Command, bundle: Path) -> None:
    """What does not fit on the disk is refused before it fills it."""

    def change(body: dict[str, Any]) -> None:
        blob = members(body, "blob")[0]
        count = (1 << 49) // blocks.BLOCK
        body["volumes"][-1] += 5 * count - blob["stored"]
        blob.update(size=1 << 49, stored=5 * count)
        with open(bundle / "volume-0002", "r+b") as f:
            f.truncate(body["volumes"][-1])

    forge(bundle, change)
    refused(agent, far, bundle, 4, "are free on the disk")


# ------------------------------------------------------------------ signatures


@pytest.fixture
def keys(agent: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key, and a simspool.toml that trusts it."""
    assert agent("bundle", "keygen", tmp_path / "key") == 0
    (tmp_path / "simspool.toml").write_text('[bundle]\ntrusted = ["key.pub"]\n')
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    return tmp_path / "key"


def test_only_what_a_trusted_key_signed_is_taken(origin: Spool, far: Spool, agent: Command, keys: Path, tmp_path: Path) -> None:
    """Unsigned ones only with --allow-unsigned; signed by others never; altered after signing never."""
    whole(origin)
    unsigned = create(agent, origin)["path"]
    refused(agent, far, unsigned, 4, "--allow-unsigned")
    signed = Path(create(agent, origin, "--sign-key", keys)["path"])
    agent("bundle", "keygen", tmp_path / "other")
    foreign = create(agent, origin, "--sign-key", tmp_path / "other")["path"]
    refused(agent, far, foreign, 4, "is not trusted here")
    assert agent("bundle", "import", "--spool", far.path, "--allow-unsigned", foreign) == 4
    copied = Path(shutil.copytree(signed, "copied.bundle"))
    forge(copied, lambda body: body.update(created=1.0))
    refused(agent, far, copied, 4, "is wrong: it was altered")
    (copied / "manifest.sig").write_text("ssh-ed25519 AAAA\n")
    refused(agent, far, copied, 4, "cannot be read")
    shutil.copy(Path(foreign) / "manifest.sig", copied)
    refused(agent, far, copied, 4, "is not trusted here")
    [taken] = take(agent, far, signed)
    assert taken["made_by"] == "signed by simspool"
    assert agent("bundle", "import", "--spool", far.path, "--allow-unsigned", unsigned) == 0


def test_receipts_are_signed_too(origin: Spool, far: Spool, agent: Command, keys: Path) -> None:
    """A receipt's signature is of a receipt: that of a bundle does not serve."""
    whole(origin)
    bundle = Path(create(agent, origin, "--sign-key", keys)["path"])
    take(agent, far, bundle)
    unsigned = receipt(agent, far)
    assert agent("bundle", "apply-receipt", "--spool", origin.path, unsigned) == 4
    signed = receipt(agent, far, "--sign-key", keys)
    key = signing.load_key(str(keys))
    document = Path(signed).read_bytes()
    right = Path(f"{signed}.sig").read_bytes()
    Path(f"{signed}.sig").write_bytes(signing.sign(document, signing.BUNDLE, key))
    assert agent("bundle", "apply-receipt", "--spool", origin.path, signed) == 4
    assert "is wrong" in agent.err
    Path(f"{signed}.sig").write_bytes(right)
    assert apply(agent, origin, signed)["signature"] == "signed by simspool"


def test_keys(agent: Command, tmp_path: Path, keys: Path) -> None:
    """Keys of ssh-keygen serve; a file that others may read, a locked one and other kinds are refused; none is overwritten."""
    import subprocess

    from simspool.agent.exit_codes import CommandError

    assert agent("bundle", "keygen", keys) == 2
    assert "is there already" in agent.err
    if shutil.which("ssh-keygen"):
        for name, kind, secret in (("plain", "ed25519", ""), ("locked", "ed25519", "secret"), ("rsa", "rsa", "")):
            command = ["ssh-keygen", "-q", "-C", "me@here", "-t", kind, "-N", secret, "-f", str(tmp_path / name)]
            subprocess.run(command, check=True)
        line = (tmp_path / "plain.pub").read_text()
        trusted = signing.parse_public(line)
        assert trusted is not None
        assert trusted.name == "me@here"
        made = signing.sign(b"x", signing.BUNDLE, signing.load_key(str(tmp_path / "plain")))
        assert signing.verify(b"x", made, signing.BUNDLE, [trusted], allow_unsigned=False, what="x") == "signed by me@here"
        for name, reason in {"locked": "passphrase", "rsa": "not an Ed25519 key"}.items():
            with pytest.raises(CommandError, match=reason):
                signing.load_key(str(tmp_path / name))
    keys.chmod(0o644)
    with pytest.raises(CommandError, match="chmod 600"):
        signing.load_key(str(keys))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("sign = 1", "there is no key 'sign'"), ("sign_key = 1", "sign_key"), ('trusted = "x"', "trusted must be a list"),
        ('trusted = ["ssh-rsa AAAA x"]', "is not an Ed25519 public key"), ('trusted = ["nowhere.pub"]', "cannot be read"),
        ('volume_size = "much"', "volume_size"), ('volume_size = "1 kB"', "is under"), ("volume_size = true", "volume_size"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used(far: Spool, agent: Command, tmp_path: Path, line: str, reason: str) -> None:
    """Exit status 2, with the key and the reason."""
    (tmp_path / "simspool.toml").write_text(f"[bundle]\n{line}\n")
    assert agent("bundle", "import", "--spool", far.path, "x") == 2
    assert reason in agent.err


def test_show(far: Spool, agent: Command, bundle: Path) -> None:
    """What is in it, and whether its bytes are right."""
    [body] = agent.lines("bundle", "show", bundle, "--verify")
    assert (body["runs"], body["files"], body["altered"], body["signature"]) == (2, 2, [], "not signed")
    path = bundle / "volume-0002"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)
    [body] = agent.lines("bundle", "show", bundle, "--verify", code=8)
    assert "volume-0002" in body["altered"][0]
    assert agent("bundle", "show", bundle) == 0
    assert "not read" in agent.out
    assert hashlib.sha256(b"").hexdigest() not in agent.out
