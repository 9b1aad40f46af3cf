"""`retrieval embed`."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.errors import UserError

from . import columns
from .amounts import Part
from .columns import asked_columns
from .commands import Command, refuse_unused, together
from .options import (
    as_stored,
    common,
    fills_store,
    pick_device,
    quiet_libraries,
    refuse_missing,
    refuse_two_ways,
    require_store,
    uses_device,
    writes,
)
from .output import emit, progress, say, tell_skipped

if TYPE_CHECKING:
    from retrieval.data import Asked, TextFile, Texts
    from retrieval.images import Images
    from retrieval.store import Store


PASSED_ON = ("compute", "backend", "batch_size", "role", "part", "add", "replace", "overwrite")
OF_ITEMS = ("--compute", "--backend", "--batch-size", "--as", "--split", "--skip-bad", "--no-labels")


@click.command(cls=Command)
@click.option("--encoder", "name", required=True, help="A run, an encoder folder, or a hub name.")
@click.option(
    "--data",
    "path",
    type=click.Path(path_type=Path),
    required=True,
    help="Texts or images, as for train; or a store by this encoder without its head.",
)
@together(
    click.option(
        "--compute",
        type=click.Choice(["float32", "float16", "bfloat16"]),
        default="float32",
        show_default=True,
        help="How the encoder runs; half precision is for GPUs, and bfloat16 for openvino.",
    ),
    click.option(
        "--backend",
        type=click.Choice(["torch", "openvino"]),
        default="torch",
        show_default=True,
        help="openvino is twice as fast on a CPU.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=64,
        show_default=True,
        help="Pictures at a time; texts go by length.",
    ),
    click.option(
        "--shard-rows",
        type=click.IntRange(min=1),
        help="Rows a shard: an interrupted run goes on from its last whole one.  [default: 4,096]",
    ),
    click.option(
        "--part",
        type=Part(),
        metavar="I/N",
        help="Only the I-th of N parts of the data, for as many machines; `store merge` joins them.",
    ),
    click.option(
        "--as",
        "role",
        type=click.Choice(["document", "query"]),
        default="document",
        show_default=True,
        help="What texts are, for encoders with prompts for each.",
    ),
    title="Encoding",
)
@together(
    columns.text_or_anchor,
    columns.image,
    columns.label,
    columns.no_labels,
    columns.identifier,
    columns.payload,
    click.option("--split", default="train", show_default=True, help="Of a data set with several."),
    click.option("--skip-bad", is_flag=True, help="Leave out images that do not decode, and name them."),
    title="Data",
)
@fills_store
@writes
@uses_device
@common
def embed(name: str, path: Path, output: Path, device: str | None, as_json: bool, **flags: Any) -> None:
    """Encode a corpus into an embedding store.

    Killed, interrupted or out of disk, the same command goes on where it stopped. Several devices (--device cuda:0,cuda:1)
    are used by a process each.

    \b
    Example:
      retrieval embed --encoder run --data corpus.csv --output store
    """
    quiet_libraries()
    shard_rows = _shard_rows(output, flags)
    data = _read(path, asked_columns(flags), flags["split"], flags["skip_bad"], shard_rows)
    # What follows takes seconds to import; everything above is said before.
    from retrieval.cpus import usable_cpus
    from retrieval.embed import embed as embed_data
    from retrieval.encoder import load_encoder
    from retrieval.store.writer import rows_of_part

    rows = rows_of_part(len(data), shard_rows, flags["part"])
    devices = [pick_device(part) for part in device.split(",")] if device else [pick_device(None)]
    _use_cpus(usable_cpus())
    encoder = load_encoder(name, devices[0] if len(devices) == 1 else "cpu")
    resumed, ran = _told(output)
    with progress("embed", len(rows)) as advance, _telling_what_is_kept(output):
        store = embed_data(
            encoder,
            data,
            output,
            dtype=as_stored(flags["dtype"], output, flags["add"] or flags["replace"]),
            shard_rows=shard_rows,
            devices=devices,
            resumed=resumed,
            progress=advance,
            **{key: flags[key] for key in PASSED_ON},
        )
    if not ran:
        say(f"{output}: is already what this command makes; nothing was encoded")
    skipped = store.manifest.get("skipped", [])
    tell_skipped(skipped)
    result = {
        "output": str(output),
        "count": store.count,
        "dim": store.dim,
        "dtype": store.dtype,
        "generation": store.manifest["generation"],
        "skipped": len(skipped),
        "skipped_images": skipped,
        "encoder": store.manifest["encoder"],
    }
    lines = [f"{output}: {store.count:,} × {store.dim} embeddings by {name}"]
    if flags["part"]:
        number, parts = flags["part"]
        result["part"] = store.manifest["part"]
        whole = result["part"]["whole"][:12]
        lines.append(f"  part {number} of {parts} of {len(data):,} rows ({whole}, the same of all its parts)")
    emit(result, as_json, lines)


def _shard_rows(output: Path, flags: dict[str, Any]) -> int:
    """How many rows are in a shard. Raises UserError where these flags cannot fill a store at `output`."""
    from retrieval.artifact import refuse_to_clobber, stated_kind
    from retrieval.store import KIND, SHARD_ROWS, open_store

    changes = flags["add"] or flags["replace"]
    refuse_two_ways(flags["add"], flags["replace"], flags["overwrite"])
    if flags["part"] and changes:
        raise UserError(
            "--part: makes a store of its own; leave out --append and --replace, and `store merge` the parts"
        )
    if changes:
        refuse_unused("the store to be changed has its shards' size already", "--shard-rows")
        require_store(output)
        with open_store(output) as store:
            return store.shard_rows
    if stated_kind(output) != KIND:  # of a store it is found out later whether this very command made it
        refuse_to_clobber(output, KIND, flags["overwrite"])
    return flags["shard_rows"] or SHARD_ROWS


def _read(
    path: Path, asked: "Asked", split: str, skip_bad: bool, shard_rows: int
) -> "TextFile | Texts | Images | Store":
    from retrieval.artifact import stated_kind
    from retrieval.data import scan_texts
    from retrieval.data.documents import is_collection
    from retrieval.images import is_image_data, read_images
    from retrieval.store import KIND, open_store

    refuse_missing(path, give="texts or images")
    if stated_kind(path) == KIND:
        asked.refuse_without_columns(path)
        refuse_unused(f"{path} is a store, of which only a head is computed", *OF_ITEMS)
        store = open_store(path)
        say(f"{path}: {store.count:,} embeddings")
        return store
    if path.is_dir() and is_collection(path):
        raise UserError(f"{path}: is a collection; embed its corpus.jsonl, or its queries.jsonl --as query")
    data: TextFile | Texts | Images
    if is_image_data(path, split, asked):
        data = read_images(path, skip_bad=skip_bad, split=split, asked=asked, captions=True)
    else:
        data = scan_texts(path, shard_rows, split, asked)
    say(f"{path}: {data.origin}" + ("" if data.has_ids else "; no ids (column id), so rows are numbered"))
    return data


def _told(output: Path) -> tuple[Callable[[int], None], list[int]]:
    """What says how much of an interrupted run is kept, and a list that is empty as long as nothing had to be done."""
    from retrieval.embed import left_behind

    left, ran = left_behind(output), []

    def resumed(rows: int) -> None:
        ran.append(rows)
        if rows:
            say(f"{output}: {rows:,} rows of an interrupted run are kept")
        elif left:
            say(f"{output}: an interrupted run left {left:,} rows of another encoder or other data; they are made anew")

    return resumed, ran


@contextmanager
def _telling_what_is_kept(output: Path) -> Iterator[None]:
    """Where it fails, says how many rows the same command will go on from."""
    from retrieval.embed import forget_if_empty, left_behind

    try:
        yield
    except BaseException as error:
        forget_if_empty(output)
        kept = left_behind(output)
        if kept or isinstance(error, KeyboardInterrupt):
            say(f"{output}: {kept:,} rows are kept for the same command to go on from")
        raise


def _use_cpus(count: int) -> None:
    """As many threads as this process has cores: torch counts the machine's, not the container's share."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(count)
