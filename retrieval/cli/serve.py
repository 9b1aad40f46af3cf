"""`retrieval serve`."""

from pathlib import Path

import click

from retrieval.errors import UserError

from .options import checks, common, existing, pick_device, quiet_libraries, uses_device
from .output import as_line, emit, say


@click.command()
@click.argument("index", type=existing("folder"))
@click.option("--encoder", "name", help="The encoder that made the index.  [default: as the index recorded it]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen: 0.0.0.0 for other machines too.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 for one that is free.")
@click.option(
    "--index-device", "where_to", default="cpu", show_default=True, help="Where to search: cuda, or cuda:0,cuda:1."
)
@click.option("--log", is_flag=True, help="A line on stderr for each request: when, path, status, milliseconds.")
@checks
@uses_device
@common
def serve(
    index: Path,
    name: str | None,
    host: str,
    port: int,
    where_to: str,
    log: bool,
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
        from retrieval.web.app import is_local, logged, make_app
        from retrieval.web.running import listen, run
    except ModuleNotFoundError as error:
        if error.name not in ("uvicorn", "starlette"):
            raise
        raise UserError(f"{error.name} is not installed; pip install 'retrieval-toolkit[serve]'") from None
    listening = listen(host, port)
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
    app = make_app(served, host, as_line)
    run(logged(app, say) if log else app, listening, say)
