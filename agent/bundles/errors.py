"""Why a bundle is not taken."""

from __future__ import annotations

from simspool.agent.exit_codes import ExitCode
from simspool.spool import SpoolError


class BadBundle(SpoolError):
    """Raised for a folder that is no bundle, or one that is altered, cut or hostile. Nothing of what is wrong with it was taken."""

    exit_code = ExitCode.DAMAGE


class VolumeMissing(BadBundle):
    """Raised for a member that lies, in part, in volumes that are not there. `names` are theirs."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"{', '.join(names)} not there: bring the rest of the bundle, and import it again")
        self.names = names


class BundleRefused(SpoolError):
    """Raised for a bundle or receipt that is whole, and not for this spool or not by anybody that it trusts. Nothing was taken."""

    exit_code = ExitCode.REFUSED


class NoRoom(BundleRefused):
    """Raised for a bundle that does not fit on the disk now."""
