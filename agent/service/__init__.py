"""The agent as a systemd user service: the unit's text (`unit`) and putting it into place (`manager`)."""
