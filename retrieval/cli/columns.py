"""Which columns of a file are what: the options that name them, and the texts that are read with them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.errors import UserError

from .commands import F, together

if TYPE_CHECKING:
    from retrieval.data import Asked, Texts

FLAGS = {  # what a column can be, and what click calls the option that names it
    "anchor": "anchor",
    "positive": "positive",
    "negative": "negative",
    "text": "text_column",
    "image": "image_column",
    "label": "label",
    "id": "id_column",
    "score": "score",
    "payload": "payload",
}
USUAL = {"min_score": None, "negatives": 7, "split": "train"}


def column(which: str, help: str, **more: Any) -> Callable[[F], F]:
    """The option that names a column."""
    return click.option(f"--{which}", FLAGS[which], metavar="COLUMN", help=help, **more)


text, image, label, identifier = (
    column(which, f"Column of {what}.")
    for which, what in (("text", "texts"), ("image", "pictures"), ("label", "classes"), ("id", "ids"))
)
no_labels = click.option("--no-labels", is_flag=True, help="Read no labels, neither of folders nor of a column.")
payload = column(
    "payload", "Column to keep beside them, which results then show; may be given several times.", multiple=True
)
text_or_anchor = column("text", "Column of texts.  [default: found by name; of pairs the anchors]")
_pairs = (
    column("anchor", "Column of anchors, with --positive.  [default: found by name]"),
    column("positive", "Column of positives."),
    column("negative", "Column of hard negatives; may be given several times.", multiple=True),
)
_scores = (
    column("score", "Column of scores of pairs."),
    click.option("--min-score", type=float, help="Pairs scored so or more are positives; the rest are left out."),
    click.option(
        "--negatives",
        type=click.IntRange(min=0),
        default=USUAL["negatives"],
        show_default=True,
        help="Hard negatives used of each row.",
    ),
    click.option(
        "--split", default=USUAL["split"], show_default=True, help="Of a BEIR folder or data set with several."
    ),
)
columns = together(*_pairs, text, label, *_scores, title="Columns")
of_pairs = together(*_pairs, *_scores, title="Columns")


def asked_columns(flags: dict[str, Any], *, optional: bool = False, pairs: bool = False) -> "Asked":
    """The columns that the flags name. optional: of a file that need not have them. pairs: nothing else will do."""
    from retrieval.data import Asked

    given = {which: flags[flag] for which, flag in FLAGS.items() if flags.get(flag)}
    counted = {} if flags.get("negatives") is None else {"negatives": flags["negatives"]}
    labels = optional or not flags.get("no_labels")  # a file that is judged by needs them
    return Asked(**given, **counted, optional=optional, pairs=pairs, labels=labels)


def as_words(flags: dict[str, Any]) -> list[str]:
    """What `columns` was given, once more."""
    words = []
    for which, flag in FLAGS.items():
        given = flags.get(flag) or ()
        for value in given if isinstance(given, tuple) else (given,):
            words += [f"--{which}", value]
    for name, usual in USUAL.items():
        if flags[name] != usual:
            words += [f"--{name.replace('_', '-')}", str(flags[name])]
    return words


def training_data(
    path: Path, flags: dict[str, Any], *, split: str | None = None, optional: bool = False, pairs: bool = False
) -> "Texts":
    """The texts; of scored pairs those that count as positives. split: another than that of the training data. optional: named columns
    need not be there. pairs: nothing else will do."""
    from retrieval.data import read_texts

    data = read_texts(path, asked_columns(flags, optional=optional, pairs=pairs), split or flags["split"])
    if data.scores is None and flags["min_score"] is not None and not optional:
        raise UserError(f"--min-score: {path} has no scored pairs; leave it out, or name their column by --score")
    return _positives(data, path, flags, flags["min_score"])


def several_training_data(paths: Sequence[Path], flags: dict[str, Any]) -> "list[Texts]":
    """`training_data` of each. Of several data sets --min-score is for those that cannot do without it. Raises UserError if none is
    such, or one lacks a column that is named."""
    from retrieval.data import read_texts, says_positives
    from retrieval.data.columns import NoColumn

    if len(paths) == 1:
        return [training_data(paths[0], flags)]
    try:
        read = [read_texts(path, asked_columns(flags), flags["split"]) for path in paths]
    except NoColumn as error:
        raise UserError(f"{error}; it is asked of every --data: rename columns, to be alike or found by name") from None
    graded = [data.scores is not None and not says_positives(data.scores) for data in read]
    if flags["min_score"] is not None and not any(graded):
        raise UserError("--min-score: no --data has pairs with other scores than 0 and 1; leave it out")
    least = [flags["min_score"] if needed else None for needed in graded]
    return [_positives(data, path, flags, score) for data, path, score in zip(read, paths, least, strict=True)]


def _positives(data: "Texts", path: Path, flags: dict[str, Any], least: float | None) -> "Texts":
    """Of scored pairs those that count as positives."""
    from retrieval.data import pairs_by_score

    return data if data.scores is None else pairs_by_score(data, least, str(path), flags["negatives"])
