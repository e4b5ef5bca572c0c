"""The receiving side of a relay: what arrives in a folder is put into this spool, and receipts tell the origins what became of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from simspool.agent.bundles import signing
from simspool.agent.bundles.errors import NoRoom
from simspool.agent.bundles.log import imported, note_import, origins
from simspool.agent.bundles.reading import open_bundle
from simspool.agent.bundles.settings import BundleSettings
from simspool.agent.bundles.taking import Taken, take
from simspool.agent.carry import receipts
from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import catalog_path
from simspool.agent.exit_codes import ExitCode, code_of
from simspool.agent.targets.settings import TargetSettings
from simspool.spool import Locked, NewerFormat, Spool, SpoolError, records

from . import folder
from .keeping import Sayer
from .place import IN, Refusal

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_AGAIN = 60.0  # seconds between tries of a bundle that cannot be taken now


@dataclass(slots=True)
class Received:
    """What was taken in one turn: `bundles` that were whole, `new_bytes` of records and files that were new, `refused` ones, `left` there.

    `receipts` that were written; `exit_code` the worst of all.
    """

    bundles: int = 0
    new_bytes: int = 0
    refused: int = 0
    left: int = 0
    receipts: int = 0
    exit_code: ExitCode = ExitCode.OK
    names: list[str] = field(default_factory=list)


class Receiver:
    """Takes bundles from a folder. Confined to one thread at a time; `turn` again and again.

    `view` gives a catalog that is used in the thread that asks for it; `targets` are those in force here.
    """

    def __init__(
        self, spool: Spool, path: str, view: Callable[[], AbstractContextManager[Catalog]], targets: Callable[[], list[TargetSettings]],
        bundle: BundleSettings, sayer: Sayer, *, allow_unsigned: bool = False,
    ) -> None:  # fmt: skip
        self._spool, self._path, self._view, self._targets = spool, path, view, targets
        self._bundle, self._sayer, self._allow_unsigned = bundle, sayer, allow_unsigned
        self._key: Ed25519PrivateKey | None = None if bundle.sign_key is None else signing.load_key(bundle.sign_key)
        self._claim: ExitStack | None = None
        self._written: dict[str, bytes] = {}  # origin -> its receipt as it was written last, without what is new in each
        self._catalog_was: tuple[object, ...] = ()
        self._later: dict[str, float] = {}  # bundle -> when it is tried again
        self._swept = float("-inf")

    @property
    def path(self) -> str:
        """The place."""
        return self._path

    def turn(self, *, receipts_too: bool = True) -> Received:
        """Take what is there; write receipts where something changed. Raises Locked beside another receiver, PlaceUnreachable, OSError."""
        folder.prepare(self._path)
        if self._claim is None:
            claim = ExitStack()
            claim.enter_context(folder.claimed(os.path.join(self._path, IN, ".receiver.lock"), "takes what arrives there"))
            self._claim = claim
        self._tidy()
        found, done = Received(), []
        for name in folder.arrived(self._path):
            if self._later.get(name, 0.0) > time.monotonic():
                found.left += 1
            elif self._take(name, found):
                done.append(name)
        if done or receipts_too:
            self._write_receipts(found, anyway=bool(done))
        for name in done:  # a receipt covers them now: whoever sees that they are gone finds it
            folder.finish(self._path, name)
        return found

    def close(self) -> None:
        """Let another process receive."""
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def _tidy(self) -> None:
        now = time.time()
        if abs(now - self._swept) < _AGAIN:
            return
        self._swept = now
        left = folder.sweep(self._path, now)
        if left:
            self._sayer.wrong("sweep", "; ".join(left[:3]))
        if not self._bundle.trusted and folder.is_open_to_others(self._path):
            self._sayer.wrong(
                "open", f"other users may put bundles into {self._path}, and no key is trusted: `chmod go-w` it, or set [bundle] trusted"
            )

    # ------------------------------------------------------------------ bundles

    def _take(self, name: str, found: Received) -> bool:
        """Take a bundle; True when all of it is here. What is wrong with it is moved aside, what may be right later stays."""
        path = os.path.join(self._path, IN, name)
        try:
            if os.path.islink(path):
                raise NotADirectoryError(20, "it is a link", path)
            with open_bundle(path, self._bundle.trusted, allow_unsigned=self._allow_unsigned) as bundle, self._view() as catalog:
                taken = take(bundle, self._spool, catalog, lambda *_: None, via="relay")
        except (NoRoom, NewerFormat, Locked) as why:
            self._wait(name, str(why), found, code_of(why))
            return False
        except SpoolError as why:
            self._refuse(name, Refusal(str(why)), found, code_of(why))
            return False
        except NotADirectoryError:
            self._refuse(name, Refusal(f"{name} is no folder"), found, ExitCode.DAMAGE)
            return False
        except OSError as why:
            self._wait(name, f"{name}: {why.strerror or why}", found, code_of(why))
            return False
        self._later.pop(name, None)
        self._sayer.right(name)
        found.new_bytes += taken.new_record_bytes + taken.new_file_bytes
        if taken.exit_code != ExitCode.OK:
            self._refuse(name, _refusal(taken), found, taken.exit_code)
            return False
        if imported(self._spool, taken.bundle) is None:
            note_import(self._spool, taken)
        found.bundles += 1
        found.names.append(name)
        return True

    def _wait(self, name: str, why: str, found: Received, code: ExitCode) -> None:
        self._later[name] = time.monotonic() + _AGAIN
        self._sayer.wrong(name, f"{why} ({name} waits)")
        found.left += 1
        found.exit_code = max(found.exit_code, code)

    def _refuse(self, name: str, refusal: Refusal, found: Received, code: ExitCode) -> None:
        self._sayer.say(f"{name} is refused: {refusal.reason}")
        found.refused += 1
        found.exit_code = max(found.exit_code, code)
        self._write_receipts(found, anyway=True)  # a part of it may be here
        folder.refuse(self._path, name, refusal)

    # ------------------------------------------------------------------ receipts

    def _write_receipts(self, found: Received, *, anyway: bool) -> None:
        """Write the receipt of each origin of which something changed."""
        now = self._stamp()
        if not anyway and now == self._catalog_was:
            return
        with self._view() as catalog:
            present = self._targets()
            for origin in origins(self._spool, catalog):
                body = receipts.make_receipt(self._spool, catalog, present, origin)
                what = records.encode({k: v for k, v in body.items() if k not in {"id", "at"}})
                if self._known(origin) == what:
                    continue
                document = receipts.encode(body)
                signature = None if self._key is None else signing.sign(document, signing.RECEIPT, self._key)
                folder.write_receipt(self._path, origin, document, signature)
                self._written[origin] = what
                found.receipts += 1
        self._catalog_was = now

    def _known(self, origin: str) -> bytes | None:
        """Return what the last receipt said, as far as it is this spool's, and signed as they are now."""
        if origin not in self._written:
            there = folder.read_receipt(self._path, origin)
            body = _decoded(there[0]) if there is not None and (there[1] is None) == (self._key is None) else {}
            what = records.encode({k: v for k, v in body.items() if k not in {"id", "at"}})
            self._written[origin] = what if body.get("from") == self._spool.id else b""
        return self._written[origin]

    def _stamp(self) -> tuple[object, ...]:
        """Return what changes when the catalog does."""
        found: list[object] = []
        for path in (catalog_path(self._spool), f"{catalog_path(self._spool)}-wal"):
            try:
                info = os.stat(path)
                found += [info.st_ino, info.st_mtime_ns, info.st_size]
            except OSError:
                found.append(None)
        return tuple(found)


def _decoded(document: bytes) -> Mapping[str, Any]:
    try:
        body = records.decode(document)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _refusal(taken: Taken) -> Refusal:
    if taken.altered or taken.missing:
        return Refusal("; ".join([*taken.altered[:3], *(f"{name} is missing" for name in taken.missing[:3])]))
    first, why = next(iter(taken.refused.items()))
    return Refusal(f"{first}: {why}" + (f", and {len(taken.refused) - 1} more" if len(taken.refused) > 1 else ""), taken.refused)


