"""Who calls: the data folder's secret, the tokens signed with it, and the users that they name."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import jwt

from .errors import Unauthorised

ALGORITHM = "HS256"
FAR_EXPIRY = 4_070_908_800  # 2099-01-01 UTC: the published client refuses a token without `exp`
DEFAULT_USER, DEFAULT_TENANT = "simspool", "default"
_MAX_TOKEN = 4096
_MAX_NAME = 128


@dataclass(frozen=True, slots=True)
class Principal:
    """The user (and the user's tenant) on whose behalf a request runs."""

    user: str
    tenant: str


def prepare_folder(data: Path) -> None:
    """Create the data folder with mode 0700.

    Raises PermissionError when it exists and belongs to another user, or others may write into it.
    """
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = data.stat()
    if found.st_uid != os.geteuid():
        raise PermissionError(f"{data} belongs to another user (uid {found.st_uid}): choose a folder of your own with --data")
    if found.st_mode & 0o022:
        raise PermissionError(f"{data} is writable by others: run `chmod 700 {data}` or choose another --data")


def write_private(path: Path, text: str) -> None:
    """Write a small file with mode 0600: temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def secret_of(data: Path) -> bytes:
    """Return the signing secret of a data folder, made on first use (mode 0600). Deleting it revokes every token and URL."""
    path = data / "secret"
    if not path.exists():
        write_private(path, secrets.token_hex(32))
    return bytes.fromhex(path.read_text(encoding="utf-8").strip())


def issue_token(data: Path, user: str = DEFAULT_USER, tenant: str = DEFAULT_TENANT) -> str:
    """Return a new token for a user of the server in this data folder. It is valid until the year 2099.

    Raises ValueError when the name is empty, over 128 characters or not printable.
    """
    for name in (user, tenant):
        if not name or len(name) > _MAX_NAME or not name.isprintable():
            raise ValueError(f"not a name for a user or tenant: {name!r} (1 to {_MAX_NAME} printable characters)")
    claims = {"sub": user, "tenant": tenant, "iat": int(time.time()), "exp": FAR_EXPIRY, "jti": secrets.token_hex(8)}
    return jwt.encode(claims, secret_of(data), algorithm=ALGORITHM)


def first_token(data: Path) -> tuple[str, bool]:
    """Return the token in `DIR/token` and whether it was made just now."""
    path = data / "token"
    if path.exists():
        return path.read_text(encoding="utf-8").strip(), False
    token = issue_token(data)
    write_private(path, token + "\n")
    return token, True


def authenticate(header: str | None, secret: bytes) -> Principal:
    """Return who an Authorization header names. The comparison of signatures takes the same time for all of them.

    Raises Unauthorised.
    """
    scheme, _, token = (header or "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > _MAX_TOKEN:
        raise Unauthorised("a token is needed: send `Authorization: Bearer <token>`; the server's own is in its DIR/token")
    try:
        claims = jwt.decode(token, secret, algorithms=[ALGORITHM], options={"require": ["exp", "sub"]})
    except jwt.ExpiredSignatureError:
        raise Unauthorised("the token has expired: ask the server's owner for a new one") from None
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        raise Unauthorised("the token is not one of this server's: use the one in its DIR/token") from None
    user, tenant = claims["sub"], claims.get("tenant", DEFAULT_TENANT)
    if not isinstance(user, str) or not isinstance(tenant, str) or not user:
        raise Unauthorised("the token names no user: ask the server's owner for a new one")
    return Principal(user, tenant)
