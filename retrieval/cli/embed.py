"""`retrieval embed`."""

from pathlib import Path

import click

from retrieval.errors import UserError

from .options import common, emit, pick_device, progress, quiet_libraries, say, uses_device, writes


@click.command()
@click.option("--encoder", "name", required=True, help="A run, an encoder folder, or a hub name.")
@click.option("--data", "path", type=click.Path(path_type=Path), required=True, help="Texts or images, as for train.")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--skip-bad", is_flag=True, help="Leave out images that do not decode, and count them.")
@writes
@uses_device
@common
def embed(
    name: str,
    path: Path,
    batch_size: int,
    skip_bad: bool,
    output: Path,
    overwrite: bool,
    device: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Encode a corpus into an embedding store.

    Killed or out of disk, the same command goes on where it stopped.

    \b
    Example:
      retrieval embed --encoder run --data corpus.csv --output store
    """
    quiet_libraries()
    from retrieval.artifact import refuse_to_clobber
    from retrieval.data import read_texts
    from retrieval.embed import embed as embed_data
    from retrieval.embed import forget_if_empty, left_behind
    from retrieval.encoder import load_encoder
    from retrieval.images import is_image_data, read_images
    from retrieval.store import KIND

    refuse_to_clobber(output, KIND, overwrite)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give texts or images")
    data = read_images(path, skip_bad=skip_bad) if is_image_data(path) else read_texts(path)
    say(f"{path}: {data.origin}")
    encoder = load_encoder(name, pick_device(device))
    left = left_behind(output)

    def resumed(rows: int) -> None:
        if rows:
            say(f"{output}: {rows:,} rows of an interrupted run are kept")
        elif left:
            say(f"{output}: an interrupted run left {left:,} rows of another encoder or other data; they are made anew")

    with progress("embed", len(data)) as advance:
        try:
            store = embed_data(
                encoder, data, output, batch_size=batch_size, overwrite=overwrite, resumed=resumed, progress=advance
            )
        except BaseException:
            forget_if_empty(output)
            raise
    skipped = store.manifest["skipped"]
    if skipped:
        say(f"Warning: {len(skipped):,} images cannot be read and were left out, the first {skipped[0]}")
    result = {
        "output": str(output),
        "count": store.count,
        "dim": store.dim,
        "skipped": len(skipped),
        "encoder": store.manifest["encoder"],
    }
    emit(result, as_json, [f"{output}: {store.count:,} × {store.dim} embeddings by {name}"])
