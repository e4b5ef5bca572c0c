"""Files: announced with a checksum, sent to a presigned address, confirmed, attached to runs."""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import TYPE_CHECKING, Any

from filters import ME
from models import Artifact, Category, Refused, check
from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    from simvue_server import StandIn

CATEGORY = TypeAdapter(Category)
MISMATCH = "The SHA256 you specified did not match the calculated checksum"


class StorageError(Exception):
    """What the object storage answers, in its own words: XML, not JSON."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message


class Artifacts:
    """The content of a checksum is kept once, and asked for once."""

    def __init__(self, at: StandIn) -> None:
        self.at, self.store = at, at.store

    def create(self, body: Any, base: str, line: str) -> tuple[int, Any]:
        """Take what is said of a file; answer where its content goes, or no address where the content is known."""
        doc = check(Artifact, body, strict=self.at.options.strict).model_dump()
        self.at.faults.too_large(line, doc["size"])
        known = self.at.options.known_content and self._stored(doc["checksum"])
        identity = self.store.add("artifacts", doc | {"uploaded": bool(known), "user": ME})
        if known:
            return 200, {"id": identity, "url": None}
        expires = int(time.time() + self.at.options.presign_seconds)
        fields = {"key": identity, "expires": str(expires), "signature": self._sign("send", identity, expires)}
        if self.at.options.upload == "post":
            return 200, {"id": identity, "url": f"{base}/storage", "fields": fields}
        return 200, {"id": identity, "url": f"{base}/storage/{identity}?expires={expires}&signature={fields['signature']}"}

    def _sign(self, what: str, identity: str, expires: int) -> str:
        return hmac.new(self.at.token.encode(), f"{what} {identity} {expires}".encode(), "sha256").hexdigest()

    def _allowed(self, what: str, identity: str, query: dict[str, str]) -> dict[str, Any]:
        expires = int(query["expires"]) if query.get("expires", "").isdigit() else 0
        doc = self.store.get("artifacts", identity)
        if doc is None or not hmac.compare_digest(self._sign(what, identity, expires), query.get("signature", "")):
            raise StorageError(403, "SignatureDoesNotMatch", "The signature we calculated does not match the one you provided")
        if expires < time.time():
            raise StorageError(403, "AccessDenied", "Request has expired")
        return doc

    def _stored(self, checksum: str) -> bool:
        return self.store.db.execute("SELECT 1 FROM contents WHERE checksum = ?", (checksum,)).fetchone() is not None

    def send(self, identity: str, query: dict[str, str], data: bytes, line: str) -> int:
        """Store the content of a presigned address; return the status. What does not match its checksum is not stored."""
        doc = self._allowed("send", identity, query)
        self.at.faults.too_large(line, len(data))
        if hashlib.sha256(data).hexdigest() != doc["checksum"]:
            raise StorageError(400, "BadDigest", MISMATCH)
        self.store.db.execute("INSERT OR REPLACE INTO contents VALUES (?, ?)", (doc["checksum"], data))
        return 204 if self.at.options.upload == "post" else 200

    def content(self, identity: str, query: dict[str, str]) -> tuple[bytes, str]:
        """Return the content behind a presigned address, and its type."""
        doc = self._allowed("fetch", identity, query)
        row = self.store.db.execute("SELECT data FROM contents WHERE checksum = ?", (doc["checksum"],)).fetchone()
        if row is None:
            raise StorageError(404, "NoSuchKey", "The specified key does not exist")
        return row[0], doc["mime_type"] or "application/octet-stream"

    def confirm(self, identity: str, body: Any) -> tuple[int, Any]:
        """Take the sender's word that the content is there, if it is."""
        doc = self.at.objects.need("artifacts", identity)
        if body != {"uploaded": True}:
            raise Refused(422, 'only {"uploaded": true} can be said of an artifact')
        if not self._stored(doc["checksum"]):
            raise Refused(400, "the content has not arrived")
        self.store.put("artifacts", doc | {"uploaded": True})
        return 200, {"id": identity}

    def shown(self, doc: dict[str, Any]) -> dict[str, Any]:
        """Return an artifact as the dialect shows it: with an address for its content, once that is there."""
        if not doc["uploaded"]:
            return doc | {"url": None}
        expires = int(time.time() + self.at.options.presign_seconds)
        signature = self._sign("fetch", doc["id"], expires)
        return doc | {"url": f"{self.at.base}/storage/{doc['id']}?expires={expires}&signature={signature}"}

    def attach(self, run: str, identity: str, body: Any) -> tuple[int, Any]:
        """Give a run the artifact, in a category."""
        self.at.objects.need("runs", run)
        self.at.objects.need("artifacts", identity)
        try:
            category = CATEGORY.validate_python(body.get("category") if isinstance(body, dict) else None)
        except ValidationError:
            raise Refused(422, "category must be input, output or code") from None
        self.store.db.execute("INSERT OR REPLACE INTO run_artifacts VALUES (?, ?, ?)", (run, identity, category))
        return 200, {"id": identity}

    def of_run(self, run: str, name: str | None = None, category: str | None = None) -> list[dict[str, Any]]:
        """Return a run's artifacts with their categories, first attached first."""
        rows = self.store.db.execute("SELECT artifact, category FROM run_artifacts WHERE run = ? ORDER BY rowid", (run,)).fetchall()
        found = [doc | {"category": kind} for identity, kind in rows if (doc := self.store.get("artifacts", identity))]
        return [doc for doc in found if name in {None, doc["name"]} and category in {None, doc["category"]}]

    def listed(self, run: str, query: dict[str, str]) -> tuple[int, Any]:
        """Return a run's artifacts, by name or category where asked."""
        self.at.objects.need("runs", run)
        return 200, [self.shown(doc) for doc in self.of_run(run, query.get("name"), query.get("category"))]

    def category(self, run: str, identity: str) -> tuple[int, Any]:
        """Return the category of an artifact in a run."""
        for doc in self.of_run(run):
            if doc["id"] == identity:
                return 200, {"category": doc["category"]}
        raise Refused(404, f"artifact {identity} is not attached to run {run}")
