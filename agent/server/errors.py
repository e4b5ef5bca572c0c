"""What the server refuses, and with which status. The body is always `{"detail": text}`, the dialect's form.

Refused
├── BadRequest (400)     the request's framing cannot be read
├── Unauthorised (401)   no token, or one that does not verify
├── Forbidden (403)      seen, but not for this user to change
├── NotFound (404)       not there, or not visible to this user: the two look alike
├── Conflict (409)       it exists; `id` names it
├── TooLarge (413)       over a limit, before or after decompression
├── Invalid (422)        understood, but not acceptable
├── TooMany (429)        not so many at a time
└── NoRoom (507)         the server's disk has no room for it now
"""

from __future__ import annotations


class Refused(Exception):
    """Base of all refusals. `status` is the HTTP status, `detail` names the thing and the next step."""

    status = 400

    def __init__(self, detail: str, **extra: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra

    def body(self) -> dict[str, object]:
        """Return the JSON body of the answer."""
        return {"detail": self.detail, **self.extra}


class BadRequest(Refused):
    """Raised when a request's headers or framing cannot be read."""

    status = 400


class Unauthorised(Refused):
    """Raised when the token is missing, malformed, expired or signed by another server."""

    status = 401


class Forbidden(Refused):
    """Raised when the user may read the thing but not do this to it."""

    status = 403


class NotFound(Refused):
    """Raised when the thing is not there, or this user may not see it."""

    status = 404


class Conflict(Refused):
    """Raised when the thing exists already, or its state forbids the change."""

    status = 409


class TooLarge(Refused):
    """Raised when a body is over the limit that the detail names."""

    status = 413


class Invalid(Refused):
    """Raised when a body or a parameter is understood but not acceptable."""

    status = 422


class TooMany(Refused):
    """Raised when a user has too much under way at a time."""

    status = 429


class NoRoom(Refused):
    """Raised when the disk has no room for an upload; it may have some later."""

    status = 507
