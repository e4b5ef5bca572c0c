"""Artifacts into files of the user's folders: names stay inside, bytes are verified, files appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator

from simspool.spool import DamagedBlob, ids

from .errors import UnsafeName

_CHUNK = 1 << 20


def place(folder: str, name: str, *, mark: str = "") -> str:
    """Return where an artifact's name lies in a folder, or under it.

    Leading slashes and `.` and `..` parts are dropped; `mark` is appended to the file's name. Raises UnsafeName when
    nothing is left of the name, when it cannot be a file's, or when a link in the folder leads outside.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in {"", ".", ".."}]
    if not parts or "\0" in name or any(len(os.fsencode(part.encode("utf-8", "backslashreplace"))) > 240 for part in parts):
        raise UnsafeName(f"the artifact's name {name[:80]!r} cannot be a file's: read it with get_artifact")
    parts = [part.encode("utf-8", "backslashreplace").decode() for part in parts]
    parts[-1] += mark
    root = os.path.realpath(folder)
    target = os.path.join(root, *parts)
    if os.path.realpath(os.path.dirname(target)) != os.path.dirname(target):
        raise UnsafeName(f"the artifact's name {name[:80]!r} leads through a link in {folder}: choose an empty folder")
    return target


def has_content(path: str, digest: str, size: object) -> bool:
    """Say whether a file has this content already."""
    try:
        if not os.path.isfile(path) or os.stat(path).st_size != size:
            return False
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest() == digest
    except OSError:
        return False


def verified(name: str, digest: str, content: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the content, and raise DamagedBlob at its end when it does not have the digest."""
    found = hashlib.sha256()
    for data in content:
        found.update(data)
        yield data
    if found.hexdigest() != digest:
        raise DamagedBlob(f"artifact {name!r} should have the digest {digest} and has {found.hexdigest()}: its bytes are corrupt")


def write(path: str, content: Iterable[bytes]) -> None:
    """Put content under a path, whole; on any error nothing is left there. The file has the user's ordinary permissions."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = os.path.join(os.path.dirname(path), f".{ids.to_text(ids.new_id())}.part")
    try:
        with open(temporary, "xb") as f:
            f.writelines(content)
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
