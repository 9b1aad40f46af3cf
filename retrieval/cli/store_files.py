"""`retrieval store import | export`: other tools' files."""

from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from retrieval.errors import UserError
from retrieval.metrics import METRICS

from .columns import column
from .commands import refuse_unused
from .options import (
    as_stored,
    checks,
    common,
    existing,
    fills_store,
    pick_device,
    refuse_existing,
    refuse_two_ways,
    require_store,
    uses_device,
    writes,
)
from .output import emit, progress, say
from .store import store, store_argument

if TYPE_CHECKING:
    from retrieval.formats import Opened
    from retrieval.store import Store

T = TypeVar("T", bound=Sized)
ids_beside = click.option(
    "--ids",
    "ids_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the ids, one a line, or to an .npy integers.",
)


@store.command("import")
@click.argument("path", metavar="FILE", type=existing("file"))
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    help="How the vectors are compared.  [needed unless the file says, or the store that is added to]",
)
@click.option("--vectors", metavar="COLUMN", help="Of a table, where no column or several could be the vectors.")
@column("id", "Of a table: column of ids.  [default: id]")
@column("label", "Of a table: column of classes.  [default: label and the like]")
@click.option(
    "--payload",
    metavar="COLUMN",
    multiple=True,
    help='Of a table: of the other columns keep this; may be given several times, "" for none.  [default: all]',
)
@click.option("--normalize", is_flag=True, help="Divide every vector by its length.")
@click.option(
    "--ids",
    "ids_path",
    type=existing("file"),
    help="Ids, one a line, or an .npy of integers.  [default: the file's, else numbers]",
)
@click.option("--labels", "labels_path", type=existing("file"), help="Labels, one a line.")
@click.option(
    "--part",
    type=click.Choice(["train", "test"]),
    default="train",
    show_default=True,
    help="Of an ann-benchmarks file.",
)
@fills_store
@writes
@common
def import_(
    path: Path,
    metric: str | None,
    vectors: str | None,
    id_column: str | None,
    label: str | None,
    payload: tuple[str, ...],
    normalize: bool,
    dtype: str | None,
    ids_path: Path | None,
    labels_path: Path | None,
    part: str,
    add: bool,
    replace: bool,
    output: Path,
    overwrite: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Make a store of the vectors in FILE, or add them to one.

    FILE is read by its ending: .npy, .fvecs, .bvecs, .ivecs, .fbin, .f16bin, .ibin, .u8bin, .i8bin, .parquet (a column
    embedding, and perhaps id, label and others), .hdf5 of ann-benchmarks.

    \b
    Example:
      retrieval store import vectors.npy --metric cosine --normalize --ids ids.txt --output store
    """
    from retrieval.formats import HDF5, Imported, open_vectors, read_id_file, read_labels
    from retrieval.store import Job, Kind, append, create
    from retrieval.store.writer import write_in_turn

    refuse_two_ways(add, replace, overwrite)
    for flag, file, named in (("id", ids_path, id_column), ("label", labels_path, label)):
        if file and named:
            raise UserError(f"--{flag}s {file}: --{flag} {named} names them in {path}; give one of the two")
    if path.suffix.lower() not in HDF5:
        refuse_unused(f"{path} is no file of ann-benchmarks", "--part")
    if add or replace:
        require_store(output)
    kept = tuple(filter(None, payload)) if payload else None
    opened = open_vectors(path, part, vectors=vectors, id=id_column, label=label, payload=kept)
    metric = _metric(opened, metric, output if add or replace else None)
    ids = _one_a_row(ids_path, read_id_file(ids_path), opened.count) if ids_path else None
    labels = _one_a_row(labels_path, read_labels(labels_path), opened.count) if labels_path else None
    stored_as = as_stored(dtype, output, add or replace)
    source = Imported(opened, metric, normalize, ids, labels, stored_as)
    kind = Kind(opened.dim, stored_as, metric, normalized=normalize or metric == "cosine")
    with progress("import", opened.count) as advance:

        def run(job: Job) -> None:
            advance(job.shards.rows)
            write_in_turn(job, advance)

        if add or replace:
            made = append(output, source, kind, replace=replace, run=run)
        else:
            made = create(output, source, kind, overwrite=overwrite, run=run)
    result = {"output": str(output), "count": made.count, "dim": made.dim, "dtype": made.dtype, "metric": metric}
    result["generation"] = made.manifest["generation"]
    emit(result, as_json, [f"{output}: {made.count:,} × {made.dim} vectors in {made.dtype}, {metric}"])


def _metric(opened: "Opened", asked: str | None, changed: Path | None) -> str:
    """As asked, as the file says, or as the store that is changed has it."""
    if asked is None and opened.metric is None and changed is not None:
        from retrieval.store import open_store

        with open_store(changed) as store:
            return str(store.manifest["metric"])
    if asked is None and opened.metric is None:
        if (distance := getattr(opened, "distance", None)) is not None:
            raise UserError(
                f"{opened.path}: says {distance}, which no store compares by; give the --metric that orders its vectors alike"
            )
        raise UserError(
            f"{opened.path}: does not say how its vectors are compared; give --metric, and --normalize to make lengths 1"
        )
    if asked is not None and opened.metric not in (None, asked):
        raise UserError(f"{opened.path}: says {opened.metric}, --metric says {asked}; leave --metric out")
    return asked or opened.metric or ""


def _one_a_row(path: Path, lines: T, count: int) -> T:
    if len(lines) != count:
        raise UserError(f"{path}: has {len(lines):,} lines for {count:,} vectors; give one a vector")
    return lines


@store.command()
@store_argument
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write, by its ending."
)
@click.option("--overwrite", is_flag=True, help="Replace the file.")
@ids_beside
@click.option("--queries", type=existing("folder"), help="A store of queries, for .hdf5.")
@click.option(
    "-k", type=click.IntRange(min=1), help="Neighbours of each query, for .hdf5.  [default: 100, or all if fewer]"
)
@checks
@uses_device
@common
def export(
    folder: Path,
    output: Path,
    overwrite: bool,
    ids_path: Path | None,
    queries: Path | None,
    k: int | None,
    check: bool,
    device: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Write the vectors of STORE to a file that other tools read.

    By the ending of --output: .npy, .fvecs, .bvecs, .ivecs, .fbin, .f16bin, .ibin, .u8bin, .i8bin (vectors alone), .parquet
    (everything), .hdf5 (ann-benchmarks: with --queries and their exact neighbours).

    \b
    Example:
      retrieval store export store --output vectors.fbin --ids ids.txt
    """
    from retrieval.formats import export as export_store
    from retrieval.store import open_store

    refuse_files(overwrite, output, ids_path)
    if not queries:
        refuse_unused("is for the neighbours of --queries", "-k", "--device")
    with open_store(folder, check=check) as opened:
        device = pick_device(device) if queries else "cpu"
        export_store(
            opened,
            output,
            ids=ids_path,
            queries=open_store(queries, check=check) if queries else None,
            k=k,
            device=device,
        )
        say_left_out(opened, output, ids_path)
        result = {"output": str(output), "count": opened.count, "dim": opened.dim}
    emit(result, as_json, [f"{output}: {result['count']:,} × {result['dim']}"])


def refuse_files(overwrite: bool, output: Path, ids_path: Path | None) -> None:
    """Raise UserError where the two files to be written are one, or would replace others unasked."""
    if ids_path is not None and ids_path.resolve() == output.resolve():
        raise UserError(f"--ids {ids_path}: is --output too; give each a name of its own")
    refuse_existing(overwrite, output, ids_path)


def say_left_out(opened: "Store", output: Path, ids_path: Path | None) -> None:
    """Name what a file of bare vectors does not have; ids that are row numbers are no loss."""
    import numpy as np

    ids = opened.ids_between(0, opened.count)
    told = ids_path is not None or (isinstance(ids, np.ndarray) and np.array_equal(ids, np.arange(len(ids))))
    lost = [*([] if told else ["ids"]), *opened.manifest["columns"]]
    if output.suffix.lower() != ".parquet" and lost:
        say(f"Note: {output.suffix} holds vectors alone, not {', '.join(lost)}; .parquet has all")
