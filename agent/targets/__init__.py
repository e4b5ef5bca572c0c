"""Targets: where a drain leads. `port.py` says what every target must do."""
