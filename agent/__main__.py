"""`python -m simspool.agent` is the `agent` command; the systemd unit starts it by the interpreter's absolute path."""

from simspool.agent.cli import main

if __name__ == "__main__":
    main(prog_name="agent")
