"""The agent's systemd units, as package data."""
