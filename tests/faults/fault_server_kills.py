"""F1 on the other side: the server killed at every write, fsync and rename that it makes while ranges and files arrive."""

from __future__ import annotations

import signal

from checker import check_drained
from fault_kills import need_strace
from real_server import RealServer
from trials import Context, Part, Stage, part

_CALLS = {"pwrite64": 60, "fdatasync": 12, "fsync": 12, "rename": 4, "write": 12}


@part("F1", "the server killed at every write, fsync and rename of a drain")
def server_killed(c: Context, out: Part) -> None:
    need_strace()
    points = [(call, k) for call, n in _CALLS.items() for k in range(1, n + 1)]
    for call, k in c.random("server kills").sample(points, min(len(points), c.pick(2, 20, 200))):
        out.tried(_kill_at(c, call, k, out), f"{call} {k}")


def _kill_at(c: Context, call: str, k: int, out: Part) -> list[str]:
    """A server with a database is started again, and dies at its k-th call, perhaps before it answers; then it is started once more."""
    room = c.room()
    server = RealServer(room / "server")
    server.start()
    server.kill(signal.SIGTERM)
    with Stage(room, None) as stage:
        stage.record(2, calls=100, files=1)
        # -D: the server itself is our child, and the tracer its descendant
        inject = f"inject={call}:signal=SIGKILL:when={k}"
        server.before = ("strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)
        try:
            server.start()
            stage.environment |= server.environment
            stage.sync(options=("--timeout", "2"))
        except AssertionError:  # it died while it began
            pass
        out.add(servers_killed=int(server.process is not None and server.process.poll() is not None))
        server.kill()
        server.before = ()
        with server:
            stage.server = server
            stage.environment |= server.environment
            return check_drained(stage)
