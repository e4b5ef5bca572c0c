"""Energy and emissions of the runs that ask for it: codecarbon measures the machine in a child process, the agent gives each run its share.

Only `measuring.py` imports codecarbon, and only the child imports `measuring.py`.
"""

EVERY = 15.0
"""Seconds between two samples of a run: codecarbon's own default."""
