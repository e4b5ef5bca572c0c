"""The agent's side of an abort: requests are made and found, and what a script's process cannot do itself is done from outside."""
