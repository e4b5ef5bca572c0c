"""Who may see and change what: owner, tenant, named users, the public."""

# ruff: noqa: S608 - queries are made of our own text; what users send is bound
from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from .errors import Forbidden, Invalid, NotFound
from .identity import Principal

_MAX_USERS = 1000


def visible(alias: str) -> str:
    """Return the SQL condition "this user may read the row"; its parameters are `parameters(who)`."""
    return (
        f"({alias}.owner = :me OR {alias}.public = 1 OR ({alias}.tenant_visible = 1 AND {alias}.tenant = :tenant)"
        f" OR EXISTS (SELECT 1 FROM json_each({alias}.users) WHERE value = :me))"
    )


def parameters(who: Principal) -> dict[str, Any]:
    """Return the parameters that `visible` needs."""
    return {"me": who.user, "tenant": who.tenant}


def may_read(row: sqlite3.Row | Mapping[str, Any], who: Principal) -> bool:
    """Say whether the user may read a row that has owner, tenant, public, tenant_visible and users."""
    return bool(
        row["owner"] == who.user
        or row["public"]
        or (row["tenant_visible"] and row["tenant"] == who.tenant)
        or who.user in json.loads(row["users"])
    )


def require(row: sqlite3.Row | None, who: Principal, what: str, *, write: bool = False) -> sqlite3.Row:
    """Return the row when the user may read (or, with `write`, change) it.

    Raises NotFound when it is not there or not visible, and Forbidden when it may be read but not changed.
    """
    if row is None or not may_read(row, who):
        raise NotFound(f"{what} was not found")
    if write:
        require_owner(row, who, what)
    return row


def require_owner(row: sqlite3.Row, who: Principal, what: str) -> None:
    """Raise Forbidden when a row that the user may read belongs to another."""
    if row["owner"] != who.user:
        raise Forbidden(f"{what} belongs to another user: only its owner may change it")


def normalise(visibility: object) -> dict[str, Any]:
    """Return a visibility as {"public", "tenant", "users"}. Accepts `public`, `tenant`, a list of users or the dialect's object.

    Raises Invalid.
    """
    if visibility is None:
        return {"public": False, "tenant": False, "users": []}
    if isinstance(visibility, str) and visibility in {"public", "tenant"}:
        return {"public": visibility == "public", "tenant": visibility == "tenant", "users": []}
    if isinstance(visibility, list):
        visibility = {"users": visibility}
    if not isinstance(visibility, dict):
        raise Invalid("visibility: `public`, `tenant`, a list of users or an object with these keys is expected")
    users = visibility.get("users") or visibility.get("user") or []
    if not isinstance(users, list) or len(users) > _MAX_USERS or not all(isinstance(u, str) for u in users):
        raise Invalid(f"visibility.users: a list of at most {_MAX_USERS} user names is expected")
    return {"public": bool(visibility.get("public")), "tenant": bool(visibility.get("tenant")), "users": users}


def shown(row: sqlite3.Row) -> dict[str, Any]:
    """Return a row's visibility as the dialect shows it."""
    return {"public": bool(row["public"]), "tenant": bool(row["tenant_visible"]), "users": json.loads(row["users"])}
