"""Kill the agent at random moments while it tells people by mail, file and command; then count what reached them.

    python tests/notify/notify_campaign.py --seed 1 --seconds 120

Each round starts `agent run`, records runs whose alerts fire, and kills it: after a random time, or when the mail server has taken a mail
and not answered yet, or up to 50 ms after that. Between rounds the catalog may be deleted; the mail server may be down for a round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parent)]

from mail_sink import Mail, MailSink
from told import alarming

from simspool.agent.catalog.store import place_key
from simspool.spool import Kind, Spool, Tail, atomic, open_spool

CHANNELS = ("mail", "file", "command")
LIMIT = 90.0  # s for the last agent to tell the rest


@dataclass
class Result:
    """The figures of a campaign. `repeated` counts messages that came again, with the id of the first, by channel."""

    rounds: int = 0
    killed_at_random: int = 0
    killed_before_answer: int = 0
    killed_after_answer: int = 0
    catalogs_deleted: int = 0
    firings: int = 0
    mails: int = 0
    repeated: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


class Scene:
    """A spool, a mail server, and an agent in a process of its own that is killed again and again."""

    def __init__(self, folder: Path, sink: MailSink) -> None:
        self.folder, self.sink = folder, sink
        self.spool: Spool = open_spool(folder / "spool", create=True)
        (folder / "rt").mkdir(mode=0o700)
        self.file, self.commands, self.messages = folder / "alerts.jsonl", folder / "commands", folder / "messages"
        script = folder / "tell.sh"
        script.write_text(f'#!/bin/sh\necho "$SIMSPOOL_NOTIFY_ID" >> "{self.messages}"\ncat >> "{self.commands}"\n')
        script.chmod(0o755)
        (folder / "simspool.toml").write_text(
            f'[notify]\nfile = "alerts.jsonl"\ncommand = ["{script}"]\n[notify.mail]\nto = ["me@site"]\nsmtp = "{sink.address}"\n'
        )
        atomic.make_folder(self.spool.agent)
        atomic.write_json(f"{self.spool.agent}/notify.json", dict.fromkeys(CHANNELS, 1))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SIMSPOOL_", "SIMVUE_"))}
        places = {"SIMSPOOL_DIR": self.spool.path, "SIMSPOOL_STATE": f"{folder}/state", "XDG_RUNTIME_DIR": f"{folder}/rt"}
        self.environment = {**kept, **places, "HOME": str(folder), "SIMSPOOL_AGENT": "off"}
        self.agent: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.folder / "agent.log", "ab") as log:
            command = [sys.executable, "-m", "simspool.agent", "run"]
            self.agent = subprocess.Popen(command, env=self.environment, cwd=self.folder, stdout=log, stderr=log)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.agent is not None:
            self.agent.send_signal(number)

    def reap(self) -> None:
        if self.agent is not None:
            self.agent.wait(60)
            self.agent = None

    def delete_catalog(self) -> None:
        for path in (self.folder / "state" / place_key(self.spool)).glob("catalog.db*"):
            path.unlink()

    def bodies(self, kind: Kind) -> list[dict[str, Any]]:
        """Return all records of a kind in the spool."""
        found = []
        for run in sorted(os.listdir(self.spool.runs)):
            folder = self.spool.run(run)
            for writer in folder.writer_ids():
                with Tail(folder.writer(writer), run) as tail:
                    for chunk in tail.read(dead=True):
                        found += [dict(item.body or {}) for item in chunk.items if getattr(item, "kind", None) == kind]
        return found


def campaign(seed: int, seconds: float, folder: Path) -> Result:
    """Do rounds for some seconds, then let the last agent tell the rest; return the figures."""
    rng, result = random.Random(seed), Result()
    with MailSink() as sink:
        scene = Scene(folder, sink)
        until = time.monotonic() + seconds
        expected = 0
        while time.monotonic() < until:
            expected += _round(scene, rng, result)
        sink.taken = lambda _: None
        scene.start()
        deadline = time.monotonic() + LIMIT
        try:
            while time.monotonic() < deadline and _sent(scene) < expected * len(CHANNELS):
                time.sleep(0.3)
        finally:
            scene.kill(signal.SIGTERM)
            scene.reap()
        _judge(scene, expected, result)
    return result


def _round(scene: Scene, rng: random.Random, result: Result) -> int:
    """One agent's life. Returns how many alerts were recorded to fire."""
    sink = scene.sink
    result.rounds += 1
    how = rng.choice(("random", "before the answer", "after the answer"))
    down = how == "random" and rng.random() < 0.3
    if down:
        sink.stop()
    killed, left = threading.Event(), [rng.choice((1, 1, 2, 4))]

    def at_mail(_: Mail) -> None:
        left[0] -= 1
        if left[0]:
            return
        killed.set()
        if how == "before the answer":
            scene.kill()
        else:
            threading.Timer(rng.random() * 0.05, scene.kill).start()

    sink.taken = at_mail if how != "random" else lambda _: None
    alerts = [rng.choice((1, 1, 2, 3, 30)) for _ in range(rng.randrange(1, 4))]
    early = rng.random() < 0.5
    if early:
        _record(scene, alerts)
    scene.start()
    if not early:
        time.sleep(rng.random() * 0.7)
        _record(scene, alerts)
    if how == "random" or not killed.wait(10):
        time.sleep(rng.random() * 2.0)
        scene.kill()
        result.killed_at_random += 1
    elif how == "before the answer":
        result.killed_before_answer += 1
    else:
        result.killed_after_answer += 1
    scene.reap()
    if down:
        sink.start()
    if rng.random() < 0.3:
        result.catalogs_deleted += 1
        scene.delete_catalog()
    return sum(alerts)


def _record(scene: Scene, alerts: list[int]) -> None:
    for n in alerts:
        alarming(scene.spool, f"run of {n}", alerts=n)


def _sent(scene: Scene) -> int:
    return len({(b["id"], b["channel"]) for b in scene.bodies(Kind.NOTIFICATION) if b.get("state") == "sent"})


def _judge(scene: Scene, expected: int, result: Result) -> None:
    bad = result.violations
    firings = {b["id"] for b in scene.bodies(Kind.DECISION) if b.get("state") == "firing"}
    result.firings = len(firings)
    if len(firings) != expected:
        bad.append(f"{len(firings)} firings are recorded, not {expected}")
    sent = [b for b in scene.bodies(Kind.NOTIFICATION) if b["state"] == "sent"]
    for (identity, channel), count in Counter((b["id"], b["channel"]) for b in sent).items():
        if count != 1 or identity not in firings:
            bad.append(f"{identity} was recorded as sent {count} times by {channel}")
    for channel in CHANNELS:
        missing = firings - {b["id"] for b in sent if b["channel"] == channel}
        if missing:
            bad.append(f"{len(missing)} firings were not told by {channel}")
    mails = Counter(mail.id.removeprefix("<").split("@")[0] for mail in scene.sink.mails)
    result.mails = len(mails)
    told = {b.get("digest") or b["id"] for b in sent if b["channel"] == "mail"}
    if told != set(mails):
        bad.append(f"{len(told - set(mails))} mails never came, {len(set(mails) - told)} are of nothing")
    lines = Counter(json.loads(line)["id"] for line in scene.file.read_text().splitlines())
    commands = Counter(json.loads(line)["id"] for line in scene.commands.read_text().splitlines())
    messages = Counter(scene.messages.read_text().split())
    if set(lines) != firings or set(commands) != firings:
        bad.append(f"{len(firings - set(lines))} firings are not in the file, {len(firings - set(commands))} were given to no command")
    counted = {"mail": mails, "file": lines, "command": messages}
    result.repeated = {channel: sum(counts.values()) - len(counts) for channel, counts in counted.items()}
    if result.repeated["file"]:
        bad.append(f"{result.repeated['file']} lines are in the file twice")
    for channel in ("mail", "command"):
        if result.repeated[channel] > result.rounds:
            bad.append(f"{result.repeated[channel]} messages by {channel} came again, after {result.rounds} kills")


def main() -> int:
    """Run a campaign and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="notify-") as folder:
        result = campaign(options.seed, options.seconds, Path(folder))
    for text in result.violations:
        print(text)
    print(
        f"{result.rounds} agents killed ({result.killed_at_random} at random, {result.killed_before_answer} before a mail's answer,"
        f" {result.killed_after_answer} up to 50 ms later), {result.catalogs_deleted} catalogs deleted: {result.firings} firings,"
        f" {result.mails} mails; came again with the same id: {result.repeated}; {len(result.violations)} violations,"
        f" {time.monotonic() - began:.0f} s, seed {options.seed}"
    )
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
