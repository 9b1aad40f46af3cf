"""What the columns of a table are: found by the names that people give them, or as asked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from retrieval.errors import UserError

TEXT_COLUMNS = ("text", "sentence", "body", "content")
LABEL_COLUMNS = ("label", "labels", "category", "class", "intent")
SCORE_COLUMNS = ("score", "scores", "similarity", "similarity_score")  # of pairs
PAIR_LABELS = ("label", "labels", "gold_label")  # scores where they are numbers; else they say which pairs are none
NLI = {"entailment": 1.0, "contradiction": 0.0, "neutral": float("nan"), "-": float("nan")}  # "-": judges disagreed
PREMISE = ("premise", "hypothesis")
PAIR_COLUMNS = (
    ("anchor", "positive"),
    ("query", "positive"),
    ("question", "positive"),
    ("question", "answer"),
    ("query", "response"),
    ("query", "answer"),
    ("query", "document"),
    ("query", "passage"),
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("text1", "text2"),
    PREMISE,
)
ID_COLUMNS = ("id", "_id")
RESERVED = ("text", "path", "caption", "score", "id", "label")  # what results have of their own
PAYLOAD = "payload/"  # before the name of a column that is kept beside the texts, as stores have it
NEGATIVES = 7  # of each row that are used unless asked otherwise
COMMAS = "separate columns by commas, or call a file with tabs .tsv"
_COUNTING = {
    *TEXT_COLUMNS,
    *LABEL_COLUMNS,
    *SCORE_COLUMNS,
    *PAIR_LABELS,
    *ID_COLUMNS,
    *(name for pair in PAIR_COLUMNS for name in pair),
}


class NoColumn(UserError):
    """A column that the user names is not there."""


@dataclass(frozen=True)
class Asked:
    """Columns that the user names, and how many negatives of each row to use. optional: those that a file has count, and the rest
    are found by name, as for a file that is judged by. pairs: single texts are of no use. labels: whether they are read."""

    anchor: str | None = None
    positive: str | None = None
    negative: tuple[str, ...] = ()
    text: str | None = None
    image: str | None = None
    label: str | None = None
    id: str | None = None
    score: str | None = None
    payload: tuple[str, ...] = ()
    negatives: int = NEGATIVES
    optional: bool = False
    pairs: bool = False
    labels: bool = True

    def __post_init__(self) -> None:
        if (self.anchor is None) != (self.positive is None):
            raise UserError("--anchor and --positive: name both columns of the pairs")
        if self.anchor and (self.text or self.label):
            raise UserError("--anchor, --positive: are for pairs, --text and --label for single texts; give one kind")
        if self.negative and not self.anchor:
            raise UserError("--negative: name --anchor and --positive too")
        if self.label and not self.labels:
            raise UserError("--label, --no-labels: give one of them")
        if self.image and self.text:
            raise UserError("--image, --text: name the column of pictures or that of texts")

    def of(self, names: Sequence[str]) -> "Asked":
        """What is asked of a file with those columns."""
        if not self.optional:
            return self
        pairs = {self.anchor, self.positive} <= set(names)

        def there(name: str | None) -> str | None:
            return name if name in names else None

        return replace(
            self,
            anchor=self.anchor if pairs else None,
            positive=self.positive if pairs else None,
            negative=tuple(name for name in self.negative if pairs and name in names),
            text=there(self.text),
            image=there(self.image),
            label=there(self.label),
            id=there(self.id),
            score=there(self.score),
        )

    @property
    def names_some(self) -> bool:
        """Whether it says by itself what the texts are."""
        return any((self.anchor, self.text, self.label))

    def refuse_without_columns(self, path: object) -> None:
        """Raise UserError if a column is named of what has none."""
        named = [(which, getattr(self, which)) for which in ("anchor", "text", "image", "label", "id", "score")]
        for which, name in (*named, *(("payload", name) for name in self.payload)):
            if name is not None and not self.optional:
                raise UserError(f"--{which} {name}: {path} has no columns; give a table, or leave it out")


def counts(name: str) -> bool:
    """Whether a column of this name may be taken for something unasked."""
    word = name.strip().lower()
    return word in _COUNTING or word.startswith("negative")


def one_cell(names: Sequence[str]) -> bool:
    """Whether a header's names are one name, since something else than commas stands between them."""
    return len(names) == 1 and ";" in names[0]


def named_column(source: object, names: Sequence[str], flag: str, name: str | None) -> str | None:
    """A column that the user names. Raises UserError where the table lacks it."""
    if name is not None and name not in names:
        hint = f"; {COMMAS}" if one_cell(names) else ""
        raise NoColumn(f"--{flag} {name}: {source} has no such column (found: {', '.join(names)}){hint}")
    return name


def wanted_columns(source: str, names: Sequence[str], first: dict[str, Any], asked: Asked) -> dict[str, str]:
    """Which column serves as what: {our name: its name}, in our order, at the end those that are kept. first: a row, to tell
    scores from labels."""
    wanted = _wanted(source, names, first, asked)
    used = {what: wanted.get(what) for what in ("text", "anchor", "label", "id")}
    return wanted | {PAYLOAD + name: name for name in kept_columns(source, names, asked, used)}


def kept_columns(source: object, names: Sequence[str], asked: Asked, used: dict[str, str | None]) -> list[str]:
    """The columns that the user wants kept, in one order for all tables. used: those that are kept anyway, by what they are. Raises
    UserError for one of these, one that the table lacks, and a name that no payload can have."""
    for name in asked.payload:
        named_column(source, names, "payload", name)
        what = next((what for what, column in used.items() if column == name), None)
        if what is not None:
            raise UserError(
                f"--payload {name}: is the {what} of each row of {source}, which is kept anyway; leave it out"
            )
        if name in RESERVED:
            raise UserError(f"--payload {name}: results have {name!r} of their own; rename the column in {source}")
        if "/" in name or name in ("", "."):
            raise UserError(f"--payload {name}: no store can have a column of this name; rename it in {source}")
    return sorted(set(asked.payload))


def _wanted(source: str, names: Sequence[str], first: dict[str, Any], asked: Asked) -> dict[str, str]:
    def find(choices: Sequence[str]) -> str | None:
        return next((name for choice in choices for name in names if name.strip().lower() == choice), None)

    named = partial(named_column, source, names)
    said, asked = asked, asked.of(names)
    identifier = named("id", asked.id) or find(ID_COLUMNS)
    extra = {"id": identifier} if identifier else {}
    if asked.anchor or not asked.names_some:
        pair = named("anchor", asked.anchor), named("positive", asked.positive)
        for choice in PAIR_COLUMNS if pair[0] is None else ():
            pair = find(choice[:1]), find(choice[1:])
            if all(pair):
                break
        if pair[0] and pair[1]:
            return _of_pairs(source, names, first, pair, asked, find, named) | extra
    text = named("text", asked.text) or find(TEXT_COLUMNS)
    label = named("label", asked.label) or find(LABEL_COLUMNS) if asked.labels else None
    if text is None:
        lacks = "columns anchor and positive" if said.pairs else "column text, or anchor and positive"
        remedy = _remedy(names, said, label, identifier)
        raise UserError(f"{source}: no {lacks} (found: {', '.join(names) or 'none'}); {remedy}")
    of_beir = asked.text is None and {"_id", "title", "text"} <= set(names)
    return {"text": text} | ({"title": "title"} if of_beir else {}) | ({"label": label} if label else {}) | extra


def _remedy(names: Sequence[str], asked: Asked, label: str | None, identifier: str | None) -> str:
    """How a table of which no column is known by its name is made to be read."""
    if one_cell(names):
        return COMMAS
    if asked.optional:
        return _renaming(names, asked, label, identifier)
    if asked.pairs:
        return "name those of the pairs by --anchor and --positive"
    return "rename one in the header, or name it by --text, or --anchor and --positive"


def _renaming(names: Sequence[str], asked: Asked, label: str | None, identifier: str | None) -> str:
    """How a file that is judged by is brought to the names that are known: the flags are for --data's columns, too."""
    if asked.anchor and asked.positive:
        lacks = [name for name in (asked.anchor, asked.positive) if name not in names]
    else:
        lacks = [asked.text or "text", *([] if label else [asked.label or "label"])]
    free = [name for name in names if name not in (label, identifier, asked.anchor, asked.positive)]
    if len(lacks) == len(free) == 1:
        return f"rename its column {free[0]!r} to {lacks[0]!r}"
    others = ", as --data calls them" if asked.names_some else ", or to 'anchor' and 'positive'"
    return f"rename its columns to {' and '.join(map(repr, lacks))}{others}"


def _of_pairs(
    source: str, names: Sequence[str], first: dict[str, Any], pair: Any, asked: Asked, find: Any, named: Any
) -> dict[str, str]:
    negatives = [named("negative", name) for name in asked.negative] or [
        name for name in names if name.strip().lower().startswith("negative")
    ]
    score, said = named("score", asked.score) or find(SCORE_COLUMNS), find(PAIR_LABELS)
    if score is None and said is not None:
        value = as_text(first.get(said))
        if value.strip().lower() in NLI or _is_number(value) and pair != PREMISE:
            score = said
        elif asked.anchor is None and pair == PREMISE:
            raise UserError(
                f"{source}: its column {said!r} has {value!r} in the first row; write entailment, contradiction and neutral, of "
                f"which the first are positives and the second hard negatives"
            )
        elif asked.anchor is None:
            raise UserError(
                f"{source}: its pairs have a column {said!r} ({value!r} in the first row), so perhaps not all are "
                f"positives; keep the rows that are, or name --anchor and --positive to take all"
            )
    numbered = {f"negative_{number}": name for number, name in enumerate(negatives[: asked.negatives], 1)}
    return {"anchor": pair[0], "positive": pair[1]} | numbered | ({"score": score} if score else {})


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True


def cells(source: str, wanted: dict[str, str], number: int, row: dict[str, Any]) -> dict[str, str]:
    """What a row has in the wanted columns, by our names; a negative may be missing. A document of BEIR is title and text."""
    where = f"{source}: line {number}"
    found = {
        name: (cell_text if name.startswith(PAYLOAD) else one_text)(where, column, row.get(column))
        for name, column in wanted.items()
    }
    if "title" in found:
        found["text"] = titled(found.pop("title"), found["text"])
    for name, value in found.items():
        if not value and not name.startswith(("negative", PAYLOAD)):
            raise UserError(f"{source}: line {number} has no {wanted[name]!r}; complete or remove the row")
    if "id" in found:
        found["id"] = as_text(row[wanted["id"]])  # ids are as they are written
    return found


def one_text(where: str, column: str, value: object) -> str:
    """The text or label in a cell, without white space at its ends, which no reader sees: texts that differ in that only would
    be negatives of each other. Raises UserError for several texts, and for what is none. where: the file and the line."""
    if isinstance(value, str):
        return value.strip()
    text = cell_text(where, column, value)
    if isinstance(value, list | dict):
        kind = "a list" if isinstance(value, list) else "an object"
        raise UserError(f"{where}: its column {column!r} holds {kind}, where one text is read; write a row a text")
    return text.strip()


def cell_text(where: str, column: str, value: object) -> str:
    """A cell as it is written. Raises UserError for what is no text."""
    try:
        return as_text(value)
    except TypeError:
        raise UserError(
            f"{where}: its column {column!r} holds pictures or other bytes, and no text; name another column"
        ) from None


def titled(title: str, text: str) -> str:
    """A document with a title, as one text."""
    return f"{title} {text}".strip()


def as_text(value: object) -> str:
    """A value as a cell; null is an empty one, and so is NaN, as pandas writes it. Raises TypeError for bytes and pictures."""
    if isinstance(value, float) and value != value:
        return ""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:  # as data sets have pictures
        raise TypeError("pictures are no text")
    return (
        json.dumps(value, ensure_ascii=False, default=_as_word)
        if isinstance(value, bool | int | float | list | dict)
        else _as_word(value)
    )


def _as_word(value: object) -> str:
    if isinstance(value, bytes | tuple):  # bytes, or where a picture's are
        raise TypeError("bytes are no text")
    return str(value)
