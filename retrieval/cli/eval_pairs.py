"""`retrieval eval pairs`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .columns import asked_columns
from .evaluate import evaluate, keeps
from .evaluated import refuse_evaluation, rough, write_evaluation
from .held import by_shown
from .options import common, pick_device, quiet_libraries, uses_device
from .output import emit, progress, say
from .train_pairs import captions, pair_columns

if TYPE_CHECKING:
    from retrieval.images import Pairs


@evaluate.command()
@click.option("--encoder", required=True, help="A run, an encoder folder, or a hub name.")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Pairs, as for train pairs.")
@pair_columns("test")
@captions
@keeps
@uses_device
@common
def pairs(as_json: bool, **flags: Any) -> None:
    """How well pictures find their captions, captions their pictures, or pictures each other, among all in DATA.

    r@k: the share that finds one of its own among the nearest k; mrr: the mean of one over its rank. Where there are wrong
    captions (columns negative…, or --hard-captions), `captions` is how often the right one is nearer the picture.

    \b
    Example:
      retrieval eval pairs --encoder run --data captions.csv --hard-captions 3
    """
    quiet_libraries()
    from retrieval.encoder import load_encoder
    from retrieval.eval.pairs import WAYS
    from retrieval.images import read_pairs
    from retrieval.train.pairs import refuse_kinds, with_hard_captions

    refuse_evaluation(flags)
    data = read_pairs(flags["data"], split=flags["split"], asked=asked_columns(flags))
    data = with_hard_captions(data, flags["hard_captions"], flags["kinds"], flags["seed"])
    say(f"{flags['data']}: {data.origin}")
    encoder = load_encoder(flags["encoder"], pick_device(flags["device"]))
    refuse_kinds(encoder.model, data, str(flags["data"]))
    held = by_shown(data)
    with progress("encode", held.size) as bar:
        vectors = held.encode(encoder, bar)
    found = held.measure(vectors)
    intervals = found.intervals_over(held.unit, flags["seed"])
    # Captions are asked for pictures; of two pictures, the second asks.
    sides = ("queries", "documents") if held.parts[0].role == "query" else ("documents", "queries")
    sizes = {f"different_{side}": len(part.items) for side, part in zip(sides, held.parts[:2], strict=True)}
    result: dict[str, Any] = {
        "metrics": found.means(),
        "intervals": intervals,
        "counts": {"pairs": len(found.ids), **sizes},
        "resampled": "pictures" if held.unit == "class" else "pairs",
        "hard_captions": flags["hard_captions"],
        "encoder": encoder.fingerprint,
    }
    write_evaluation(flags, "pairs", result, {"": found}, zip(found.ids, *data.told(), strict=True))
    lines = [f"{'':<30}{'mean':>8}   95 % interval, over {result['resampled']}"]
    for name, value in found.means().items():
        low, high = intervals[name]
        way, _, what = name.rpartition("_")
        told = f"{WAYS[way]}, {what}" if way in WAYS else "right caption over wrong"
        lines.append(f"{told:<30}{value:>8.4f}   {low:.4f}–{high:.4f}")
    if "captions" in found.values and (share := with_wrong(data) / len(data)) < 1:
        alone = 0.5 + (found.means()["captions"] - 0.5) / share
        result |= {"share_with_wrong_captions": share, "captions_alone": alone}
        lines.append(
            f"{share:.0%} of the pairs have a wrong caption, and {alone:.4f} by themselves; the others count as half"
        )
    emit(result, as_json, [*lines, "", f"{len(found.ids):,} pairs", *rough(len(found.ids))])


def with_wrong(data: "Pairs") -> int:
    """How many pairs have a wrong caption."""
    wrong = (column for name, column in data.columns.items() if name.startswith("negative"))
    return sum(map(any, zip(*wrong, strict=True)))
