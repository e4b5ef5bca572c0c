"""Resource samples of the runs that are live on this host: processes, host, control groups, disks, wall time, GPUs.

What is measured is in `simspool.sdk.sampling`, which the SDK uses itself where no agent serves.
"""
