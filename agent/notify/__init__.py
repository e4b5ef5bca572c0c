"""Telling people: of alerts that fire, and of runs that end, without internet (docs/notifications.md)."""
