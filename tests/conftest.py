"""What holds for every test: no script of a test starts an agent, unless the test is about that."""

from __future__ import annotations

import os
import signal

os.environ["SIMSPOOL_AGENT"] = "off"
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):  # what starts tests in the background may have them ignored
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
