"""What a run's processes and its host use: measured from /proc, by the agent where one serves, else by the script's own keeper.

Every name, unit and source is in docs/resources.md.
"""
