"""Which columns of a training file are what: the options that name them, and the texts that `train text` and `mine` read with them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.errors import UserError

from .options import together

if TYPE_CHECKING:
    from retrieval.data import Texts

columns = together(
    click.option("--anchor", help="Column of anchors, with --positive.  [default: found by name]"),
    click.option("--positive", help="Column of positives."),
    click.option("--negative", "negative", multiple=True, help="Column of hard negatives; may be given several times."),
    click.option("--text", "text_column", help="Column of texts."),
    click.option("--label", help="Column of classes."),
    click.option("--score", help="Column of scores of pairs."),
    click.option("--min-score", type=float, help="Pairs scored so are positives; the rest are left out."),
    click.option(
        "--negatives", type=click.IntRange(min=0), default=7, show_default=True, help="Hard negatives used of each row."
    ),
    click.option("--split", default="train", show_default=True, help="Of a BEIR folder or data set with several."),
)


def training_data(path: Path, flags: dict[str, Any]) -> "Texts":
    """The texts; of scored pairs those that count as positives."""
    from retrieval.data import Asked, pairs_by_score, read_texts

    names = ("anchor", "positive", "negative", "label", "score", "negatives")
    asked = Asked(text=flags["text_column"], **{name: flags[name] for name in names})
    data = read_texts(path, asked, flags["split"])
    if data.scores is not None:
        return pairs_by_score(data, flags["min_score"], str(path))
    if flags["min_score"] is not None:
        raise UserError(f"--min-score: {path} has no scored pairs; leave it out, or name their column by --score")
    return data
