"""`agent exec`: a command of any language as a recorded run (docs/exec.md).

The command is an ordinary child in the same process group, session and terminal; what stands between it and the world are the two streams
that are passed on and read. Nothing here may hurt it: where something cannot be recorded, it runs on all the same.
"""
