"""The relay: bundles and receipts that carry themselves, over a shared folder or SSH (docs/relay.md).

A *place* is a folder that both sides reach: `place` says what it must do, `folder` and `ssh` are its kinds. `sending` is the side that
records, `receiving` the other one, `keeping` their loop; `duty` has the running agent do it.
"""
