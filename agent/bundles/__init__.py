"""Bundles: what a spool has recorded, as a folder of files that people carry over a gap (docs/bundles.md).

`writing` makes one from what `carry.outgoing` finds, `reading` opens one without believing it, `taking` puts it into a spool through
`carry.incoming`. `manifest` says what a bundle may hold, `blocks` and `volumes` how its bytes lie, `signing` who made it.
"""
