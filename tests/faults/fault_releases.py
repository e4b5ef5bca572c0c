"""F25: upgrades and downgrades in the middle of a backlog. There is no release before this one: earlier states of the tree stand for it."""

from __future__ import annotations

import sys
import time

from checker import check_drained
from copies import earlier_tree, interpreter_of
from real_server import RealServer
from trials import Context, NotHere, Part, Stage, part

EARLIER = {
    "f173bf2": "before processes, inboxes, notifications",
    "2bfc35e": "before targets, budgets, verify",
    "48dbc0f": "before bundles, shared spools, relays",
}


@part("F25", "upgrades and downgrades in mid-backlog: scripts, agents and servers of this state and of earlier ones take turns")
def releases(c: Context, out: Part) -> None:
    known: dict[str, str] = {}
    for _ in range(c.pick(1, 6, 30)):
        choice = c.random(f"releases {out.n}")
        revision = list(EARLIER)[out.n % len(EARLIER)]
        if revision not in known:
            try:
                known[revision] = interpreter_of(earlier_tree(revision, c.folder / f"tree-{revision}"))
            except LookupError as error:
                raise NotHere(str(error)) from None
        both, room = (known[revision], sys.executable), c.room()
        server = RealServer(room / "server")
        server.python = choice.choice(both)
        server.start()
        turns = []
        try:
            with Stage(room, server) as stage:
                for turn in range(4):
                    stage.python = both[turn % 2]
                    script = stage.script(calls=choice.randrange(200, 4000), files=1, size=300_000).wait_for(choice.randrange(200))
                    stage.python = choice.choice(both)
                    agent = stage.agent()
                    time.sleep(choice.uniform(0.4, 2.0))
                    how = choice.choice(["settle", "kill", "kill everything"])
                    if how == "kill everything":
                        script.kill()
                    if how != "settle":
                        agent.kill()
                    stage.settle(agent)
                    script.wait()
                    if choice.random() < 0.5:  # a server's database goes one way: an earlier one names the version and serves nothing
                        server.kill()
                        server.python = server.python if server.python == sys.executable else choice.choice(both)
                        server.start()
                    turns.append(f"{both.index(stage.python)}{how[0]}{both.index(server.python)}")
                stage.python = server.python = sys.executable
                server.kill()
                server.start()
                out.tried(check_drained(stage), f"{revision} {' '.join(turns)}")
        finally:
            server.kill()
