"""`retrieval index import | export`: other tools' files."""

from contextlib import nullcontext
from pathlib import Path

import click

from retrieval.errors import UserError

from .commands import refuse_unused
from .index import aims, findings, goal_of, index, index_argument, sentence, told_of
from .options import checks, common, existing, quiet_libraries, writes
from .output import emit, say
from .store_files import ids_beside, refuse_files, say_left_out


@index.command("import")
@click.argument("path", metavar="FILE", type=existing("file"))
@click.option("--ids", "ids_path", type=existing("file"), help="Ids, one a line.  [default: the file's own]")
@click.option("--labels", "labels_path", type=existing("file"), help="Labels, one a line.")
@click.option(
    "--metric",
    type=click.Choice(["cosine"]),
    help="Where inner products are of unit vectors, which FAISS does not say.",
)
@click.option("--encoder", "name", help="The encoder that made the vectors, to which the index will be bound.")
@aims
@writes
@common
def import_(
    path: Path,
    ids_path: Path | None,
    labels_path: Path | None,
    metric: str | None,
    name: str | None,
    recall: float | None,
    latency: float | None,
    use: str | None,
    k: int,
    output: Path,
    overwrite: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Make an index of FILE, which faiss.write_index wrote: with ids, tuned, measured, and safe to change.

    Texts are not in such a file, labels come from --labels; without --encoder only --store can search.

    \b
    Example:
      retrieval index import old.faiss --ids ids.txt --metric cosine --encoder run --output index
    """
    from retrieval.formats import read_labels, read_lines
    from retrieval.index.exchange import import_faiss

    encoder = None
    if name:
        quiet_libraries()
        from retrieval.encoder import load_encoder

        loaded = load_encoder(name, "cpu")
        encoder = {"name": loaded.name, "fingerprint": loaded.fingerprint}
    made = import_faiss(
        path,
        output,
        ids=read_lines(ids_path) if ids_path else None,
        labels=read_labels(labels_path) if labels_path else None,
        metric=metric,
        encoder=encoder,
        goal=goal_of(recall, latency, use, k, None),
        overwrite=overwrite,
        seed=seed,
    )
    emit({"output": str(output), **told_of(made)}, as_json, [f"{output}: {sentence(made)}", *findings(made)])


@index.command()
@index_argument
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File to write: .faiss, .hnswlib, or a file of vectors as `store export` writes them.",
)
@ids_beside
@click.option("--queries", type=existing("folder"), help="A store of queries, for .hdf5 of ann-benchmarks.")
@click.option("--overwrite", is_flag=True, help="Replace the files.")
@checks
@common
def export(
    folder: Path,
    output: Path,
    ids_path: Path | None,
    queries: Path | None,
    overwrite: bool,
    check: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Write INDEX as a bare file of FAISS or hnswlib, which have integer ids as they are and number the others from 0; or its vectors.

    \b
    Examples:
      retrieval index export index --output plain.faiss --ids ids.txt
      retrieval index export index --output vectors.hdf5 --queries query-store
    """
    from retrieval.artifact import writing_atomically
    from retrieval.formats import ENDINGS, write_ids
    from retrieval.formats import export as export_vectors
    from retrieval.index.bundle import open_index
    from retrieval.index.exchange import export_faiss
    from retrieval.index.hnswlib_file import write_hnswlib
    from retrieval.store import open_store

    refuse_files(overwrite, output, ids_path)
    if (ending := output.suffix.lower()) not in (endings := (".faiss", ".hnswlib", *ENDINGS)):
        raise UserError(f"{output}: cannot tell the format by its ending; use one of {', '.join(endings)}")
    if ending in ENDINGS:
        opened = open_index(folder, check=check)
        export_vectors(opened.rows, output, ids=ids_path, queries=open_store(queries, check=check) if queries else None)
        say_left_out(opened.rows, output, ids_path)
    else:
        refuse_unused(f"{ending} holds no queries", "--queries")
        opened = open_index(folder, check=check)
        with writing_atomically(ids_path) if ids_path else nullcontext() as lines:
            if lines is not None and ids_path is not None:
                write_ids(lines, ids_path, opened.rows.ids_between(0, opened.rows.count))
            if ending == ".faiss":
                export_faiss(opened, output)
            else:
                with writing_atomically(output) as file:
                    write_hnswlib(opened, file)
        if ids_path is None and opened.manifest["ids"] == "string":
            say(f"Note: {ending} holds no strings; --ids FILE writes which row has which id")
    result = {"output": str(output), "count": opened.rows.count, "dim": opened.rows.dim}
    emit(result, as_json, [f"{output}: {opened.rows.count:,} × {opened.rows.dim}"])
