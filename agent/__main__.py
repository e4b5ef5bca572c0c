"""The `agent` command, as installed and as `python -m simspool.agent`; the systemd unit starts it by the interpreter's absolute path."""

import os
import sys


def main() -> None:
    """Run the command line. What shell scripts call in loops is done without loading the commands."""
    if sys.argv[1:2] == ["log"]:
        from simspool.agent.inbox.append import quick

        if quick(sys.argv[2:], os.environ):
            return
    from simspool.agent.cli import main as command

    command(prog_name="simspool" if os.path.basename(sys.argv[0]) == "simspool" else "agent")


if __name__ == "__main__":
    main()
