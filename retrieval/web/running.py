"""What runs the routes: a socket, uvicorn, and its end."""

import asyncio
import logging
import math
import resource
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn

from retrieval.errors import UserError

Say = Callable[[str], None]
FINISHING = 30  # seconds that what was begun may take after Ctrl-C
WAITING = 2_048  # connections that the system holds until they are accepted; it may allow fewer
REPEATED = 10  # seconds after which the same is said again


class Server(uvicorn.Server):
    """From Python 3.12 on asyncio waits for connections also after a second Ctrl-C."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self.force_exit:
            for connection in list(self.server_state.connections):
                asyncio.get_running_loop().call_soon_threadsafe(connection.transport.abort)


def listen(host: str, port: int) -> socket.socket:
    """Bound before anything is loaded, which takes seconds. Raises UserError where it cannot be."""
    if not host:
        raise UserError("--host: is empty; give 127.0.0.1, or 0.0.0.0 for other machines too")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise UserError(f"--host {host} --port {port}: cannot listen there ({reason}); choose another") from None


def run(app: Any, listening: socket.socket, say: Say) -> None:
    """Answer until a signal ends it; `say` is told what goes wrong with connections."""
    _allow_files()

    async def hold() -> None:
        listening.listen(WAITING)

    # asyncio accepts as many at a time as the backlog says. Where no file is left for them, each begins a timer that tries as many
    # again, and logs it: so it takes one at a time, and the system is told later how many may wait.
    config = uvicorn.Config(
        app,
        backlog=1,
        callback_notify=hold,
        log_level="warning",
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=FINISHING,
    )
    logging.getLogger("uvicorn.error").addFilter(_of_failures(say))
    logging.getLogger("asyncio").addFilter(_of_no_file_left(say))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    with suppress(KeyboardInterrupt):  # which uvicorn raises when it has answered what it had begun
        Server(config).run(sockets=[listening])
    say("ended")


def _allow_files() -> None:
    """As many open files as this process may have, 1,024 at first on most systems: each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # systems that name no number have one nevertheless
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _of_failures(say: Say) -> Callable[[logging.LogRecord], bool]:
    """A filter: what a second Ctrl-C cuts off is no failure, nor what the end no longer waits for, which is said in a line."""

    def filtered(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("Cancel "):
            say(f"what took longer than {FINISHING} s was cut off")
            return False
        return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))

    return filtered


def _of_no_file_left(say: Say) -> Callable[[logging.LogRecord], bool]:
    """A filter of what asyncio logs, each second with a traceback: that it cannot accept is said in a line now and then."""
    last = -math.inf

    def filtered(record: logging.LogRecord) -> bool:
        nonlocal last
        if not record.getMessage().startswith("socket.accept()"):
            return True
        if time.monotonic() > last + REPEATED:
            last = time.monotonic()
            why = getattr(record.exc_info and record.exc_info[1], "strerror", "out of resources")
            say(f"no more connections can be accepted ({why}); they wait until others end")
        return False

    return filtered
