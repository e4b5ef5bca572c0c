"""Tokens that the keyring of the desktop keeps: "keyring:SERVICE/USER" names one where a token may stand. Needs the package `keyring`."""

from __future__ import annotations

from .errors import ConfigError
from .secret_files import KEYRING


def resolve(token: str | None, where: str) -> str | None:
    """Return a token as it is, or the one that it names. Raises ConfigError that says what to do."""
    if token is None or not token.startswith(KEYRING):
        return token
    service, slash, user = token.removeprefix(KEYRING).rpartition("/")
    if not slash or not service or not user:
        raise ConfigError(f'{where}: a token of the keyring is written "keyring:SERVICE/USER"')
    try:
        import keyring  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ConfigError(
            f"{where}: the token is in the keyring, which needs a package: `pip install simspool[keyring]`, or use a token file"
        ) from None
    try:
        found = keyring.get_password(service, user)
    except Exception as error:  # noqa: BLE001 - each desktop's keyring has errors of its own
        raise ConfigError(f"{where}: the keyring gives no token ({type(error).__name__}): unlock it, or use a token file") from None
    if not found:
        raise ConfigError(f"{where}: the keyring has no password of {user!r} for {service!r}: `keyring set {service} {user}` puts it there")
    return str(found)
