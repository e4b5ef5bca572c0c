"""The inbox: lines of JSON that programs in any language append, copied into a writer of the agent's own (docs/inbox.md)."""
