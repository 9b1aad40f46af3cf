"""`retrieval serve`."""

import asyncio
import logging
import math
import resource
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click

from retrieval.errors import UserError

from .options import checks, common, existing, pick_device, quiet_libraries, uses_device
from .output import SECONDS_A_LINE, as_line, emit, say

FINISHING = 30  # seconds that what was begun may take after Ctrl-C
WAITING = 2_048  # connections that the system holds until they are accepted; it may allow fewer


@click.command()
@click.argument("index", type=existing("folder"))
@click.option("--encoder", "name", help="The encoder that made the index.  [default: as the index recorded it]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen: 0.0.0.0 for other machines too.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 for one that is free.")
@click.option(
    "--index-device", "where_to", default="cpu", show_default=True, help="Where to search: cuda, or cuda:0,cuda:1."
)
@checks
@uses_device
@common
def serve(
    index: Path,
    name: str | None,
    host: str,
    port: int,
    where_to: str,
    check: bool,
    device: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Serve a search page and a JSON API over the index INDEX, until Ctrl-C.

    The encoder is loaded once. Later generations of INDEX, as `retrieval index add` publishes them, are served as soon as
    they are open. It has neither passwords nor TLS: leave it on this machine, or put a proxy that has them before it.

    \b
    Examples:
      retrieval serve index --encoder run
      curl "localhost:8000/api/search?query=card+not+working&k=3"
    """
    try:
        import uvicorn

        from retrieval.web.app import is_local, make_app
    except ModuleNotFoundError as error:
        if error.name not in ("uvicorn", "starlette"):
            raise
        raise UserError(f"{error.name} is not installed; pip install 'retrieval-toolkit[serve]'") from None
    listening = _listening(host, port)
    quiet_libraries()
    from retrieval.web.served import Served

    if where_to != "cpu":
        from retrieval.index.gpu import gpus

        gpus(where_to)
    served = Served(index, name, device=pick_device(device), index_device=where_to, check=check, say=say)
    about = served.about()
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
    encoder = f"encoder {about['encoder']}" if about["encoder"] else "no encoder: it is asked by vectors or ids"
    emit(about | {"address": address}, as_json, [f"{index}: {about['count']:,} items, {encoder}", f"{address}  (Ctrl-C ends it)"])  # fmt: skip
    if not is_local(host):
        say("Note: whoever reaches this machine can read the index; it has no passwords")
    _allow_files()

    async def hold() -> None:
        listening.listen(WAITING)

    # asyncio accepts as many at a time as the backlog says. Where no file is left for them, each begins a timer that tries as many
    # again, and logs it: so it takes one at a time, and the system is told later how many may wait.
    config = uvicorn.Config(
        make_app(served, host, as_line),
        backlog=1,
        callback_notify=hold,
        log_level="warning",
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=FINISHING,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_failure)
    logging.getLogger("asyncio").addFilter(_no_file_left())
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    with suppress(KeyboardInterrupt):  # which uvicorn raises when it has answered what it had begun
        uvicorn.Server(config).run(sockets=[listening])
    say("ended")


def _is_failure(record: logging.LogRecord) -> bool:
    """What a second Ctrl-C cuts off is none, nor what the end no longer waits for, which is said in a line."""
    if record.getMessage().startswith("Cancel "):
        say(f"what took longer than {FINISHING} s was cut off")
        return False
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _allow_files() -> None:
    """As many open files as this process may have, 1,024 at first on most systems: each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # systems that name no number have one nevertheless
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _no_file_left() -> Callable[[logging.LogRecord], bool]:
    """A filter of what asyncio logs, each second with a traceback: that it cannot accept is said in a line now and then."""
    last = -math.inf

    def filtered(record: logging.LogRecord) -> bool:
        nonlocal last
        if not record.getMessage().startswith("socket.accept()"):
            return True
        if time.monotonic() > last + SECONDS_A_LINE:
            last = time.monotonic()
            why = getattr(record.exc_info and record.exc_info[1], "strerror", "out of resources")
            say(f"no more connections can be accepted ({why}); they wait until others end")
        return False

    return filtered


def _listening(host: str, port: int) -> socket.socket:
    """Bound before anything is loaded, which takes seconds. Raises UserError where it cannot be."""
    if not host:
        raise UserError("--host: is empty; give 127.0.0.1, or 0.0.0.0 for other machines too")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise UserError(f"--host {host} --port {port}: cannot listen there ({reason}); choose another") from None
