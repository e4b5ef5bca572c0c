"""The agent: ingests the spool, evaluates, drains to targets, and serves. `app.py` is the one place that wires it."""
