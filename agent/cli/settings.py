"""The options that every command takes, and what they resolve to with the configuration files and the environment."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.spool import Spool, open_spool

if TYPE_CHECKING:
    from simspool.agent.bundles.settings import BundleSettings
    from simspool.agent.targets.settings import TargetSettings
    from simspool.sdk.config import Config

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Settings:
    """One command's view of the configuration: the command line first, then the environment, then the files."""

    spool_option: str | None = None
    url_option: str | None = None
    token_file: str | None = None
    json: bool = False

    @functools.cached_property
    def config(self) -> Config:
        """The configuration in force: the SDK's, so that script and agent agree. Raises CommandError for what cannot be used."""
        from simspool.sdk.config import load_config
        from simspool.sdk.errors import ConfigError

        try:
            return load_config(spool=self.spool_option, server_url=self.url_option, server_token=self._given_token()[0])
        except ConfigError as error:
            raise CommandError(ExitCode.USAGE, str(error)) from None

    @property
    def spool_dir(self) -> str:
        """The spool's folder."""
        return self.config.spool_dir

    @property
    def server_url(self) -> str | None:
        """The server's address, or None."""
        return self.config.server_url

    @property
    def server_token(self) -> str | None:
        """The server's token, or None."""
        return self.config.server_token

    def targets(self, spool: Spool) -> Callable[[], list[TargetSettings]]:
        """Return what reads the targets in force for a spool: of the command line and the files as they are then, in this folder."""
        from simspool.agent.targets.settings import load_targets
        from simspool.sdk.config import load_config

        folder, environ, (token, concern) = os.getcwd(), dict(os.environ), self._given_token()

        def load() -> list[TargetSettings]:
            config = load_config(
                spool=self.spool_option, server_url=self.url_option, server_token=token, folder=folder, environ=environ
            )  # fmt: skip
            return load_targets(spool, replace(config, concerns=(concern, *config.concerns)) if concern else config)

        return load

    def targets_now(self, spool: Spool) -> list[TargetSettings]:
        """Return the targets in force for a spool. Raises CommandError for settings that cannot be used."""
        from simspool.sdk.errors import ConfigError

        try:
            return self.targets(spool)()
        except ConfigError as error:
            raise CommandError(ExitCode.USAGE, str(error)) from None

    @property
    def bundles(self) -> BundleSettings:
        """The `[bundle]` table. Raises CommandError for one that cannot be used."""
        from simspool.agent.bundles.settings import parse

        return parse(self.config.bundle, self.config.sources.get("bundle", ""))

    def _given_token(self) -> tuple[str | None, str]:
        """Return the token of the file that the command line or the service names, and what is not safe about it."""
        path = self.token_file or _credential()
        return (None, "") if path is None else _secret_in(path)

    def open_spool(self, *, create: bool = False) -> Spool:
        """Open the spool. Raises InvalidSpool or NewerFormat, and CommandError when the disk refuses."""
        try:
            return open_spool(self.spool_dir, create=create)
        except OSError as error:
            what = error.strerror or error
            raise CommandError(ExitCode.SPOOL_UNUSABLE, f"cannot use the spool {self.spool_dir}: {what}") from None


def read_token(path: str) -> str:
    """Return the token in a file. Raises CommandError for one that cannot be read, that everybody can read, or that holds no token."""
    return _secret_in(path)[0]


def _secret_in(path: str) -> tuple[str, str]:
    from simspool.sdk.errors import ConfigError
    from simspool.sdk.secret_files import read_secret

    try:
        return read_secret(path)
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None


def _credential() -> str | None:
    """Return the file of the token that systemd gave this service, or None."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return None
    from simspool.agent.service.unit import CREDENTIAL

    path = os.path.join(folder, CREDENTIAL)
    return path if os.path.exists(path) else None


def common(function: Callable[Concatenate[Settings, P], R]) -> Callable[P, R]:
    """Give a command `--spool`, `--url`, `--token-file` and `--json`; it gets them as its first argument, a Settings."""

    @click.option("--spool", "spool_option", metavar="DIR", help="The spool's folder (SIMSPOOL_DIR).")
    @click.option("--url", "url_option", metavar="URL", help="The server's address (SIMSPOOL_URL).")
    @click.option(
        "--token-file", metavar="FILE", type=click.Path(dir_okay=False), help="A file with the server's token (else SIMSPOOL_TOKEN)."
    )
    @click.option("--json", "as_json", is_flag=True, help="Print lines of JSON.")
    @functools.wraps(function)
    def command(*args: Any, **options: Any) -> R:
        settings = Settings(
            options.pop("spool_option"), options.pop("url_option"), options.pop("token_file"), options.pop("as_json")
        )
        return function(settings, *args, **options)

    return command
