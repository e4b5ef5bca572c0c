"""The agent: does one serve the spool here, can scripts reach it, is a service installed; and who serves it elsewhere."""

from __future__ import annotations

import glob
import json
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from typing import Any

from simspool.agent.config import SUN_PATH, runtime_folders
from simspool.agent.exit_codes import CommandError
from simspool.agent.service import unit
from simspool.agent.service.manager import SYSTEM_FOLDER, Manager, lingers
from simspool.spool import Spool, atomic
from simspool.spool.agent_address import address_file, living_agent
from simspool.spool.lease import LINE, Holder
from simspool.spool.process import start_ticks, this_host

from .findings import Finding, Site, nearest_folder

_ANSWER = 10.0  # s
_RECENT = 600.0  # s


def agent(site: Site) -> Iterator[Finding]:
    """Does an agent serve the spool on this host, since when, and can scripts and commands reach it."""
    if not site.is_there():
        yield Finding("agent", "skipped", "there is no spool yet that one could serve", "`agent run` makes it and serves it")
        return
    spool = site.spool()
    known = living_agent(spool.path)
    if known is None:
        if site.config.agent == "auto":
            yield Finding("agent", "ok", "none serves the spool on this host now; runs in mode online start one")
        else:
            text = "none serves the spool on this host, and scripts start none (SIMSPOOL_AGENT=off)"
            yield Finding("agent", "ok", text, "`agent run`, `agent service install --user`, or `agent sync` now and then")
        yield from _path_length(spool)
        return
    since = _age(known["start_ticks"])
    how = ", started by a script" if known.get("on_demand") is True else ""
    facts = {"pid": known["pid"], "on_demand": known.get("on_demand") is True, "seconds": round(since)}
    yield Finding("agent", "ok", f"pid {known['pid']} serves the spool{how}, for {since / 60:.0f} min", "", facts)
    for name, kind, words in (("api", socket.SOCK_STREAM, "commands"), ("bell", socket.SOCK_DGRAM, "scripts")):
        yield _reached(known, name, kind, words)


def _age(start_ticks: int) -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf("SC_CLK_TCK")


def _reached(known: dict[str, Any], name: str, kind: int, words: str) -> Finding:
    path = known.get(name)
    if not isinstance(path, str):
        text = f"it has no socket for {words}" + (": they are found by looking at the disk, in seconds" if name == "bell" else "")
        return Finding(f"agent's {name}", "warn", text, "XDG_RUNTIME_DIR: a folder with a short path", {"path": None})
    facts = {"path": path, "length": len(os.fsencode(path)), "limit": SUN_PATH}
    with socket.socket(socket.AF_UNIX, kind) as trial:
        trial.settimeout(_ANSWER)
        try:
            trial.connect(path)
            if name == "api":
                trial.sendall(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n")
                if b" 200 " not in trial.recv(100):
                    raise ConnectionError("it answers something else")
        except OSError as error:
            text = f"{words} cannot reach it at {path}: {error.strerror or error}"
            return Finding(f"agent's {name}", "fail", text, "stop it (SIGTERM) and start it again", facts)
    return Finding(f"agent's {name}", "ok", f"{words} reach it at {path}", "", facts)


def _path_length(spool: Spool) -> Iterator[Finding]:
    """Say whether an agent would find a place for its sockets: the kernel takes 107 bytes."""
    wrong = ""
    for folder in runtime_folders(spool):
        wrong = next((part for part in (os.path.dirname(folder), folder) if not _is_private(part)), "")
        if not wrong:
            yield Finding("sockets", "ok", f"an agent's sockets would lie in {folder}", "", {"path": folder})
            return
    if wrong:
        text = f"an agent finds no safe place for its sockets: {wrong} is not yours alone"
        yield Finding("sockets", "warn", text, f"chmod 700 {wrong}, or XDG_RUNTIME_DIR: a folder of yours, mode 0700, with a short path")
        return
    text = f"no folder is yours and short enough (at most {SUN_PATH} bytes) for an agent's sockets"
    yield Finding("sockets", "warn", text, "XDG_RUNTIME_DIR: a folder of yours, mode 0700, with a short path")


def _is_private(path: str) -> bool:
    """Say whether a folder is this user's alone, or could be made so."""
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return os.access(nearest_folder(path), os.W_OK | os.X_OK)
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and not info.st_mode & 0o077


def service(site: Site) -> Iterator[Finding]:
    """Is the agent a service of this user's systemd or of the machine's, does it run, and does it outlive the login."""
    own = Manager(None)
    mine = [own.units[kind] for kind in ("agent", "timer") if os.path.exists(own.path(kind))]
    system = [form.format(f"@{_user()}") for form in (unit.AGENT, unit.TIMER)]
    machine = [name for name in system if os.path.exists(os.path.join(SYSTEM_FOLDER, f"{name}.d"))]
    facts: dict[str, Any] = {"user": mine, "system": machine}
    if not mine and not machine:
        yield Finding("service", "ok", "none is installed", "", facts)
        return
    if machine:
        yield Finding("service", "ok", f"{', '.join(machine)} is installed on the machine", "", facts)
    if not mine:
        return
    try:
        found = own.state()
    except CommandError as error:
        yield Finding("service", "warn", f"{', '.join(mine)} is installed, but {error}", "", facts)
        return
    facts["properties"] = found.properties
    if found.active:
        yield Finding("service", "ok", f"{', '.join(mine)} runs", "", facts)
    else:
        text = f"{', '.join(mine)} is installed and does not run"
        yield Finding("service", "fail", text, "`agent service status --user` says why", facts)
    staying = lingers()
    if staying is False:
        yield Finding("linger", "warn", "the service ends with your last login", "loginctl enable-linger")
    elif staying:
        yield Finding("linger", "ok", "the service goes on after you log out")


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def elsewhere(site: Site) -> Iterator[Finding]:
    """Which agent holds the spool's lease, and which agents of other hosts, or PID namespaces, have said that they serve this spool."""
    if not site.is_there():
        yield Finding("other hosts", "skipped", "there is no spool yet")
        return
    spool = site.spool()
    yield _lease(spool)
    folder, ours = os.path.join(spool.agent, "hosts"), os.path.basename(address_file(spool.path))
    found = {}
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        names = []
    for name in names:
        if name.endswith(".json") and name != ours:
            path = os.path.join(folder, name)
            try:
                age = max(time.time() - os.stat(path).st_mtime, 0.0)
                atomic.read_json(path)
            except (OSError, ValueError):
                continue
            found[name.removesuffix(".json")] = round(age)
    if not found:
        yield Finding("other hosts", "ok", "no agent of another host has announced itself")
        return
    text = ", ".join(f"{host} ({age / 60:.0f} min ago)" for host, age in found.items())
    yield Finding("other hosts", "ok", f"agents of other hosts announced themselves: {text}; whether they live is seen there", "", found)


def _lease(spool: Spool) -> Finding:
    """Say who drains and prunes the spool, as its newest lease has it; that it lives is only known of a process of this host."""
    paths = glob.glob(os.path.join(glob.escape(spool.agent), "lease-*.jsonl"))
    found = [int(m[1]) for path in paths if (m := re.search(r"lease-(\d{1,15})\.jsonl$", path))]
    if not found:
        return Finding("lease", "ok", "nobody has taken the spool's lease yet")
    fd = os.open(os.path.join(spool.agent, f"lease-{max(found)}.jsonl"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        line = os.pread(fd, LINE, 0)
    finally:
        os.close(fd)
    try:
        body = json.loads(line.strip(b"\0 \n"))
        holder = Holder.of(body)
    except (ValueError, TypeError):
        holder = None
    if holder is None:
        return Finding("lease", "warn", f"lease {max(found)} cannot be read", "an agent makes the next one by itself")
    facts = {"generation": max(found), "host": holder.host, "pid": holder.pid}
    here = this_host()
    known = holder.machine == here.machine and holder.boot_id == here.boot_id and holder.pid_namespace == here.pid_namespace
    if not known:
        return Finding("lease", "ok", f"pid {holder.pid} of host {holder.host} took it last: it drains and prunes, if it lives", "", facts)
    ticks = start_ticks(holder.pid)
    lives = ticks is not None and ticks[0] == holder.start_ticks and ticks[1] not in "ZX"
    text = f"pid {holder.pid} of this host {'holds' if lives else 'held'} it" + ("" if lives else ", and is gone: the next agent takes it")
    return Finding("lease", "ok", text, "", {**facts, "lives": lives})
