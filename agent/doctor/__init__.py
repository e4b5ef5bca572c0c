"""`agent doctor`: each thing that recording and syncing need on this machine, looked at by itself (docs/site.md)."""
