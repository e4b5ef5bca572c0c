"""Text that programs print: cut into lines, followed through rotations, and searched for metrics and events (docs/logs.md).

Used by the process that reads the text; nothing here knows of runs, writers or the agent.
"""
