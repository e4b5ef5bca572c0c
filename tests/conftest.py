"""What holds for every test: no script of a test starts an agent, unless the test is about that."""

from __future__ import annotations

import os

os.environ["SIMSPOOL_AGENT"] = "off"
