"""Being told to stop: Ctrl-C, and what schedulers and closed terminals send, all as KeyboardInterrupt."""

import signal
import sys
from functools import wraps
from typing import Any

AGAIN = 0.05  # seconds


def stop_when_told() -> None:
    """Python drops an exception that falls into a destructor or a callback, and with it Ctrl-C: then it is raised again."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup asks
            signal.signal(number, signal.default_int_handler)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    before = sys.unraisablehook

    @wraps(before)  # the demo reads what Python's own says of itself
    def dropped(event: Any) -> None:
        if event.exc_type is KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
        else:
            before(event)

    sys.unraisablehook = dropped
