"""Who made a bundle or a receipt: Ed25519 signatures, by keys in OpenSSH's formats (those of `ssh-keygen -t ed25519` too).

The signature is of the document's very bytes with a word before them that says what they are, so that none can be passed off as the other.
It lies beside the document, as two lines: the public key, and the signature in base64.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.spool import atomic

from .errors import BundleRefused

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

BUNDLE = b"simspool bundle manifest\0"
RECEIPT = b"simspool receipt\0"
LIMIT = 16 << 10
"""The most bytes of a key or a signature."""
_KIND = "ssh-ed25519"


@dataclass(frozen=True, slots=True)
class Trusted:
    """A key whose documents are taken: its public part, and the name that the settings give it."""

    key: bytes
    name: str


def make_key(path: str, comment: str = "simspool") -> str:
    """Make a key: the private one in `path` (mode 0600), the public one, a line, in `path`.pub. Returns that line.

    Raises CommandError when there is a file already, OSError.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    for there in (path, f"{path}.pub"):
        if os.path.lexists(there):
            raise CommandError(ExitCode.USAGE, f"{there} is there already: a key is never overwritten; name another file")
    private = Ed25519PrivateKey.generate()
    secret = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    line = f"{_line(private.public_key())} {comment}"
    if not atomic.write_file(path, secret, 0o600, exclusive=True):
        raise CommandError(ExitCode.USAGE, f"{path} is there already: a key is never overwritten; name another file")
    atomic.write_file(f"{path}.pub", line.encode() + b"\n", 0o644)
    return line


def load_key(path: str) -> Ed25519PrivateKey:
    """Return the private key in a file. Raises CommandError for one that cannot be read, is of another kind, or that others may read."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(LIMIT)
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"cannot read the key {path}: {error.strerror}; `agent bundle keygen` makes one") from None
    if not stat.S_ISREG(mode) or mode & 0o077:
        raise CommandError(ExitCode.USAGE, f"others may read the key {path}: run `chmod 600 {path}` first")
    try:
        key = serialization.load_ssh_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        locked = "password" in str(error).lower() or "passphrase" in str(error).lower()
        what = "it is locked by a passphrase: make one without, by `agent bundle keygen`" if locked else "it is no key in OpenSSH's format"
        raise CommandError(ExitCode.USAGE, f"cannot use the key {path}: {what}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise CommandError(ExitCode.USAGE, f"the key {path} is not an Ed25519 key: `agent bundle keygen` makes one")
    return key


def parse_public(line: str) -> Trusted | None:
    """Return the key that a line `ssh-ed25519 AAAA... name` is; None for what is none."""
    words = line.split(None, 2)
    if len(words) < 2 or words[0] != _KIND:
        return None
    raw = _raw(words[1])
    return None if raw is None else Trusted(raw, words[2].strip() if len(words) > 2 else f"...{words[1][-12:]}")


def sign(document: bytes, purpose: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return what is kept beside a document: who signed it, and the signature."""
    made = key.sign(purpose + document)
    return f"{_line(key.public_key())}\n{base64.b64encode(made).decode()}\n".encode()


def verify(document: bytes, signature: bytes | None, purpose: bytes, trusted: Sequence[Trusted], *, allow_unsigned: bool, what: str) -> str:
    """Return what is to be said of who made a document: "signed by NAME", "not signed", or that nobody was told whom to trust.

    Raises BundleRefused when keys are trusted and none of them signed it; `allow_unsigned` lets through what has no signature at all.
    """
    if signature is None:
        if trusted and not allow_unsigned:
            raise BundleRefused(f"{what} is not signed, and only signed ones are taken here: --allow-unsigned takes it all the same")
        return "not signed"
    if not trusted:
        return "signed, not checked: no key is trusted here ([bundle] trusted)"
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    lines = signature[:LIMIT].decode("ascii", "replace").removesuffix("\n").split("\n")
    signer = parse_public(lines[0]) if len(lines) == 2 and lines[0].isprintable() and lines[0].count(" ") == 1 else None
    if signer is None:
        raise BundleRefused(f"the signature of {what} cannot be read: copy it again")
    known = next((one for one in trusted if one.key == signer.key), None)
    if known is None:
        raise BundleRefused(f"{what} is signed by a key that is not trusted here ({lines[0][:100]}): [bundle] trusted names those that are")
    try:
        made = base64.b64decode(lines[1], validate=True)
        if base64.b64encode(made).decode() != lines[1]:
            raise ValueError("it has more than one form")
        Ed25519PublicKey.from_public_bytes(known.key).verify(made, purpose + document)
    except (InvalidSignature, binascii.Error, ValueError):
        raise BundleRefused(f"the signature of {what} is wrong: it was altered after {known.name} signed it; copy it again") from None
    return f"signed by {known.name}"


def _line(key: Ed25519PublicKey) -> str:
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def _raw(text: str) -> bytes | None:
    """Return the 32 bytes of a public key in OpenSSH's base64: two strings, each behind its length, the kind and the key."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    kind = _KIND.encode()
    head = len(kind).to_bytes(4, "big") + kind + (32).to_bytes(4, "big")
    return data[len(head) :] if data.startswith(head) and len(data) == len(head) + 32 else None
