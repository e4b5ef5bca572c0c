"""The targets: does each answer and let us in, is its certificate good for long, do the clocks agree, where do the tokens lie."""

from __future__ import annotations

import asyncio
import http.client
import ssl
import statistics
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from simspool.agent.targets.settings import BUNDLE, TargetSettings
from simspool.sdk.address import hide
from simspool.sdk.errors import ConfigError
from simspool.sdk.tls import client_context, problem

from .findings import Finding, Site, Verdict, shown_size

_PATIENCE = 20.0  # s for a target
_ASKED = 3  # times, for the round trip
_SKEW = 5.0  # s; a Date header has whole seconds
_SOON = 21 * 86400.0
_HTTP = frozenset({"auto", "simspool", "simvue", "mlflow"})
_SLOW = 2.0  # s a round trip


def targets(site: Site) -> Iterator[Finding]:
    """Connect to each target, as `agent target test` does; over HTTP, look at its certificate and its clock too. Nothing is sent."""
    present = site.targets()
    if not present:
        instead = "SIMSPOOL_URL and SIMSPOOL_TOKEN, [server] in simspool.toml, or `agent target add`"
        yield Finding("targets", "warn", "none is configured: what is recorded stays in the spool", instead)
        return
    for one in present:
        if one.kind == BUNDLE:
            yield Finding(f"target {one.name}", "ok", "it is carried by hand: `agent bundle create`, and the receipt back")
            continue
        yield asyncio.run(_connected(one))
        if one.kind in _HTTP:
            yield from _wire(one)


async def _connected(settings: TargetSettings) -> Finding:
    from simspool.agent.targets.port import Refused, Unreachable
    from simspool.agent.targets.probe import probe

    name = f"target {settings.name}"
    where = f"{settings.kind} at {hide(settings.address)}"
    facts: dict[str, Any] = {"kind": settings.kind, "address": hide(settings.address), "required": settings.required}
    missed: Verdict = "fail" if settings.required else "warn"
    try:
        found = await probe(settings, times=_ASKED, patience=_PATIENCE)
    except (Refused, ConfigError) as error:
        return Finding(name, "fail", f"{where} does not let us in: {error}", f"`agent target test {settings.name}`", facts)
    except Unreachable as error:
        instead = "nothing is lost, it is tried again for ever; is there a network here, is the address right?"
        return Finding(name, missed, f"{where} does not answer: {error}", instead, facts)
    except TimeoutError:
        return Finding(name, missed, f"{where} does not answer within {_PATIENCE:.0f} s", "is there a network here?", facts)
    trip, limits = statistics.median(found.trips), found.limits
    facts |= {"server": found.server, "round_trip": round(trip, 6)}
    facts |= {"limits": {"body": limits.body, "ranges": limits.ranges, "blob": limits.blob}}
    sizes = f"{shown_size(limits.body)} a request, {shown_size(limits.blob)} a file"
    text = f"{where} answers in {1000 * trip:.0f} ms and lets us in: {found.server}, {sizes}"
    return Finding(name, "warn" if trip > _SLOW else "ok", text, "", facts)


def _wire(settings: TargetSettings) -> Iterator[Finding]:
    """Ask for the server's front page, without a token: its Date header, and the certificate that it shows."""
    way = settings.way
    clock, certificate = f"clock of {settings.name}", f"certificate of {settings.name}"
    parts = urlsplit(settings.url)
    if way.proxy is not None:
        yield Finding(clock, "skipped", "not asked: a proxy is between")
        return
    encrypted = parts.scheme == "https"
    if encrypted:
        try:
            context = client_context(way.tls)
        except ConfigError as error:
            yield Finding(certificate, "fail", str(error), "repair the setting that it names")
            return
        link: http.client.HTTPConnection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=_PATIENCE, context=context)
    else:
        link = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_PATIENCE)
    try:
        link.connect()
        if encrypted:
            assert isinstance(link.sock, ssl.SSLSocket)
            yield _certificate(certificate, link.sock.getpeercert() or {}, link.sock.version() or "")
        before = time.time()
        link.request("HEAD", parts.path or "/")
        answer = link.getresponse()
        after = time.time()
        yield _clock(clock, answer.getheader("Date"), before, after)
    except (OSError, http.client.HTTPException) as error:
        wrong = problem(error, way.tls) if encrypted else None
        if wrong is not None:
            yield Finding(certificate, "fail", wrong.text, f"`agent target test {settings.name}`")
        else:
            yield Finding(clock, "skipped", f"it does not answer ({error or type(error).__name__})")
    finally:
        link.close()


def _certificate(name: str, shown: dict[str, Any] | Any, version: str) -> Finding:
    end = shown.get("notAfter")
    if not isinstance(end, str):
        return Finding(name, "skipped", "it does not say how long it is good")
    left = ssl.cert_time_to_seconds(end) - time.time()
    facts = {"not_after": end, "days": round(left / 86400, 1), "tls": version}
    if left < _SOON:
        return Finding(name, "warn", f"it is good for {left / 86400:.0f} more days ({end})", "its owner must renew it", facts)
    return Finding(name, "ok", f"it is verified ({version}), and good until {end}", "", facts)


def _clock(name: str, date: str | None, before: float, after: float) -> Finding:
    try:
        theirs = parsedate_to_datetime(date or "").timestamp()
    except (ValueError, TypeError, OverflowError):
        return Finding(name, "skipped", "it does not say what time it is")
    # whole seconds, cut off: it may have been up to a second later there
    skew = theirs - after if theirs > after else min(theirs + 1 - before, 0.0)
    facts = {"skew": round(skew, 3)}
    if abs(skew) > _SKEW:
        text = f"it is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's: times of runs will not fit with others'"
        return Finding(name, "warn", text, "have the wrong one synchronised (chrony, systemd-timesyncd)", facts)
    return Finding(name, "ok", "it agrees with this machine's, to a second or so", "", facts)


def tokens(site: Site) -> Iterator[Finding]:
    """Where do tokens come from, who else may read them, and where would they go unencrypted."""
    try:
        config = site.config
    except ConfigError as error:
        yield Finding("settings", "fail", str(error), "repair the file that it names")
        return
    for text in config.notes:
        yield Finding("settings", "warn", text)
    concerns = dict.fromkeys(text for one in site.targets() for text in one.concerns)
    for text in concerns:
        yield Finding("tokens", "warn", text)
    if config.server_url and not config.server_token:
        instead = "SIMSPOOL_TOKEN_FILE, --token-file, or [server] token_file in simspool.toml"
        yield Finding("tokens", "warn", f"there is none for {hide(config.server_url)}", instead)
    elif config.server_token and not concerns:
        source = config.sources.get("token", "")
        yield Finding("tokens", "ok", f"the server's comes from {source}" if source else "there is one", "", {"source": source})
    elif not config.server_url:
        yield Finding("tokens", "ok", "no server is configured that would want one")
