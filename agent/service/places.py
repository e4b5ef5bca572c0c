"""Where a user's spool and the agent's index are, found (and made) by a process of that user's own.

An administrator's process must neither guess another user's settings nor touch folders in that user's reach. Run it as
`python -P -m simspool.agent.service.places [--create] [--spool DIR]`; it prints one line of JSON: `spool`, `state`, `url`.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from simspool.agent.exit_codes import CommandError, ExitCode

_TIMEOUT = 120


@dataclass(frozen=True, slots=True)
class Places:
    """A user's spool, the folder of the agent's index, and the server that the user's own settings name, if any."""

    spool: str
    state: str
    url: str | None


def account(user: str) -> pwd.struct_passwd:
    """Return the user's account. Raises CommandError when there is none."""
    try:
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError):
        raise CommandError(ExitCode.USAGE, f"there is no user {user!r} on this machine") from None


def places_of(user: str, spool: str | None, *, create: bool) -> Places:
    """Ask as that user; with `create`, the folders are made. Needs root. Raises CommandError with what to do."""
    who = account(user)
    command = [os.path.abspath(sys.executable), "-P", "-m", "simspool.agent.service.places"]
    command += ["--create"] if create else []
    command += ["--spool", spool] if spool else []
    environment = {"HOME": who.pw_dir, "USER": who.pw_name, "LOGNAME": who.pw_name, "PATH": os.defpath, "LANG": "C.UTF-8"}
    try:
        answer = subprocess.run(
            command, cwd="/", env=environment, user=who.pw_uid, group=who.pw_gid, extra_groups=os.getgrouplist(who.pw_name, who.pw_gid),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT, check=False,
        )  # fmt: skip
    except PermissionError:
        hint = "install simspool where every user can reach it, /opt/simspool for example"
        raise CommandError(ExitCode.ERROR, f"{who.pw_name} cannot run {command[0]}: {hint}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(ExitCode.ERROR, f"cannot ask for {who.pw_name}'s folders: {error}") from None
    try:
        found = json.loads(answer.stdout.splitlines()[-1])
        return Places(found["spool"], found["state"], found["url"])
    except (ValueError, IndexError, KeyError, TypeError):
        said = (answer.stderr.strip().splitlines() or [f"status {answer.returncode}"])[-1]
        raise CommandError(ExitCode.ERROR, f"{who.pw_name}'s spool cannot be used: {said}") from None


def main(arguments: Sequence[str]) -> int:
    """Print where this user's folders are, and make them when asked to."""
    from simspool.agent.catalog.store import state_folder
    from simspool.sdk.config import load_config
    from simspool.spool import SpoolError, atomic, open_spool

    words = list(arguments)
    create = "--create" in words
    spool = words[words.index("--spool") + 1] if "--spool" in words else None
    try:
        config = load_config(spool=spool, folder=os.path.expanduser("~"))
        if create:
            atomic.make_folder(state_folder())
            open_spool(config.spool_dir, create=True)
    except (SpoolError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps({"spool": config.spool_dir, "state": state_folder(), "url": config.server_url}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
