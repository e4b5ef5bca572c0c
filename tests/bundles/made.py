"""Bundles as tests make them, and as nobody should."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command import Command
from real_server import RealServer

from simspool.agent.bundles.writing import MANIFEST
from simspool.spool import Spool

_BEGIN, _MIDDLE = b'{"bundle":', b',"sha256":"'


def create(agent: Command, spool: Spool, *arguments: object, code: int = 0) -> dict[str, Any]:
    """Make a bundle in the working folder; return what the command says of it."""
    [made] = agent.lines("bundle", "create", "--spool", spool.path, *arguments, code=code)
    return made


def take(agent: Command, spool: Spool, *paths: object, code: int = 0) -> list[dict[str, Any]]:
    """Import bundles."""
    return agent.lines("bundle", "import", "--spool", spool.path, *paths, code=code)


def receipt(agent: Command, spool: Spool, *arguments: object) -> str:
    """Make the receipt; return its path."""
    [made] = agent.lines("bundle", "receipt", "--spool", spool.path, *arguments)
    return str(made["path"])


def apply(agent: Command, spool: Spool, path: object, code: int = 0) -> dict[str, Any]:
    """Apply a receipt."""
    [found] = agent.lines("bundle", "apply-receipt", "--spool", spool.path, path, code=code)
    return found


def sync(agent: Command, spool: Spool, server: RealServer, code: int = 0) -> dict[str, Any]:
    """Drain the far spool."""
    token = Path(spool.path).parent / "token"
    token.write_text(server.token)
    token.chmod(0o600)
    [found] = agent.lines("sync", "--spool", spool.path, "--url", server.url, "--token-file", token, code=code)
    return found


def tree(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Return the digests of all files below a folder, but for what an agent keeps for itself."""
    found = {}
    for base, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not (f == "agent" and base == str(folder))]
        for name in files:
            path = os.path.join(base, name)
            found[os.path.relpath(path, folder)] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return found


def manifest_of(bundle: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the body of a bundle's manifest."""
    data = (Path(bundle) / MANIFEST).read_bytes()
    body: dict[str, Any] = json.loads(data)["bundle"]
    return body


def write_manifest(bundle: str | os.PathLike[str], body: Any) -> None:
    """Give a bundle another manifest, with the digest that belongs to it: as somebody does who knows how."""
    text = body if isinstance(body, bytes) else json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    document = _BEGIN + text + _MIDDLE + hashlib.sha256(text).hexdigest().encode() + b'"}\n'
    (Path(bundle) / MANIFEST).write_bytes(document)


def forge(bundle: str | os.PathLike[str], change: Callable[[dict[str, Any]], object]) -> None:
    """Change a bundle's manifest, and make its digest right again."""
    body = manifest_of(bundle)
    change(body)
    write_manifest(bundle, body)
