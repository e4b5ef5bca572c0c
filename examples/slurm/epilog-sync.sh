#!/bin/bash
# For whoever runs the cluster: an epilog (Epilog= in slurm.conf) that sends what a job's user has recorded, as that user, from the node
# that the job ran on. Nothing of it holds the node up for longer than its time limit, and nothing of it drains the node.

[ -n "$SLURM_JOB_USER" ] && [ -n "$SLURM_JOB_UID" ] && [ "$SLURM_JOB_UID" -ge 1000 ] || exit 0
agent=/opt/simspool/bin/agent
[ -x "$agent" ] || exit 0

# A clean environment: the user's own files name the spool and the server, and `-C /` so that no folder of a job counts. The agent's index
# is made anew in a private folder on the local disk, and goes again.
timeout --kill-after=10 120 runuser -u "$SLURM_JOB_USER" -- \
    env -i -C / HOME="$(getent passwd "$SLURM_JOB_USER" | cut -d: -f6)" USER="$SLURM_JOB_USER" PATH=/usr/bin:/bin \
    bash -c 'export SIMSPOOL_STATE="$(mktemp -d)" && trap "rm -rf \"$SIMSPOOL_STATE\"" EXIT && "$0" sync --timeout 100' "$agent" \
    >/dev/null 2>&1
exit 0
