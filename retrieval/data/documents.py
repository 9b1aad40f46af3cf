"""Rows and folders that name several positives and negatives of one query, as pairs with negatives.

nested rows   FlagEmbedding (query, pos, neg), Tevatron and MS MARCO (query, positive_passages, negative_passages), DPR
              (question, positive_ctxs, hard_negative_ctxs, negative_ctxs); pairs by any of their names of which some cells are
              lists, as MTEB has them to rerank (query, positive, negative)
collections   BEIR (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv; FlagEmbedding's SPLIT_queries.jsonl and SPLIT_qrels.jsonl), Tevatron
              with ids (positive_document_ids), LlamaIndex (one .json of queries, corpus, relevant_docs)
"""

import ast
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from retrieval.errors import UserError

from .columns import PAIR_COLUMNS, PAIR_LABELS, SCORE_COLUMNS, Asked, as_text, one_text, titled
from .rows import Lines, json_rows

NESTED = (  # query, its positives, its negatives: the first of these that a row has
    ("query", "pos", ("neg",)),
    ("query", "positive_passages", ("negative_passages",)),
    ("question", "positive_ctxs", ("hard_negative_ctxs", "negative_ctxs")),
    ("query", "positives", ("negatives",)),
    ("anchor", "positives", ("negatives",)),
)


class Nested(NamedTuple):
    """A query and some texts of either kind."""

    query: str
    positives: list[str]
    negatives: list[str]


class Columns(NamedTuple):
    """Which columns are a query, its positives and its negatives. of_pairs: named as those of pairs are; only there do all columns
    of negatives count, where else it is the first that has some, and is a text never read as a list."""

    query: str
    positives: str
    negatives: tuple[str, ...]
    of_pairs: bool = False


def nested_columns(row: Mapping[str, Any], asked: Asked | None = None) -> Columns | None:
    """The columns of rows like this one, if they hold several texts: by the names that have them, or as they are in this row.
    asked: columns that the user names."""
    asked = (asked or Asked()).of(list(row))
    for query, positives, negatives in () if asked.names_some else NESTED:
        if query in row and isinstance(_listed(row.get(positives)), list | str):
            return Columns(query, positives, negatives)
    return _of_pairs(row, asked)


def _of_pairs(row: Mapping[str, Any], asked: Asked) -> Columns | None:
    names = {name.strip().lower(): name for name in reversed(list(row))}
    if asked.score or not names.keys().isdisjoint((*SCORE_COLUMNS, *PAIR_LABELS)):
        return None  # which of the texts are positives the scores say
    if asked.anchor and asked.positive:
        query, positives = asked.anchor, asked.positive
    else:
        found = next(((a, b) for a, b in PAIR_COLUMNS if a in names and b in names), None)
        if found is None or asked.names_some:
            return None
        query, positives = (names[name] for name in found)
    negatives = asked.negative or tuple(
        name for name, value in row.items() if name.strip().lower().startswith("negative") and not _is_of_numbers(value)
    )
    lists = any(isinstance(row.get(name), list) for name in (positives, *negatives))
    missing = not {query, positives, *negatives} <= row.keys()  # which is said of pairs of single texts
    return Columns(query, positives, negatives, of_pairs=True) if lists and not missing else None


def _is_of_numbers(value: Any) -> bool:
    """Such as the scores or ids of negatives."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, int | float) for each in value)


def _listed(value: Any) -> Any:
    """A list, also one that a CSV holds as JSON or as Python writes it, or an array from a table."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        for read in (json.loads, ast.literal_eval):
            try:
                return read(value)
            except (ValueError, SyntaxError):
                continue
        return value
    return value.tolist() if hasattr(value, "tolist") else value


def nested_row(source: str, number: int, row: Mapping[str, Any], columns: Columns) -> Nested:
    read = partial(one_text, f"{source}: line {number}")

    def texts(name: str) -> list[str]:
        return _texts(partial(read, name), row.get(name) if columns.of_pairs else _listed(row.get(name)))

    asked, good = read(columns.query, row.get(columns.query)), texts(columns.positives)
    if not asked or not good:
        lacks = columns.positives if asked else columns.query
        raise UserError(f"{source}: line {number} has no {lacks!r}; complete or remove the row")
    bad = filter(None, map(texts, columns.negatives))
    return Nested(asked, good, list(chain.from_iterable(bad)) if columns.of_pairs else next(bad, []))


def _texts(read: Callable[[Any], str], values: Any) -> list[str]:
    """Texts, or passages with title and text, that are not empty. read: what gives the text of a cell."""
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, list):
        return []
    texts = [titled(read(v.get("title")), read(v.get("text"))) if isinstance(v, dict) else read(v) for v in values]
    return [text for text in texts if text]


def as_pairs(nested: Nested, negatives: int) -> Iterator[dict[str, str]]:
    """A row a positive, each with the first of the negatives; "" where there are fewer."""
    numbered = {
        f"negative_{at + 1}": nested.negatives[at] if at < len(nested.negatives) else "" for at in range(negatives)
    }
    for positive in nested.positives:
        yield {"anchor": nested.query, "positive": positive, **numbered}


def is_collection(path: Path) -> bool:
    """Whether a path is a folder with a corpus and queries, or LlamaIndex's one file of both."""
    return (path.is_dir() and (path / "corpus.jsonl").is_file()) or path.suffix.lower() == ".json"


def collection(path: Path, split: str) -> Iterator[tuple[int, Nested]]:
    """The queries of a collection, each with a number, its relevant documents, and those judged as irrelevant."""
    if path.suffix.lower() == ".json":
        return _json_file(path)
    if (path / "qrels").is_dir() or (path / f"{split}_qrels.jsonl").is_file():
        return _judged(path, split)
    return _by_ids(path)


def documents_of(path: Path) -> list[str]:
    """Every document of a folder with a corpus, whether a query names it or not, as its pairs have them."""
    from retrieval.formats.trec import entries

    if (path / "qrels").is_dir() or any(path.glob("*_qrels.jsonl")):
        return [text for _, text in entries(path / "corpus.jsonl")]
    return [text for texts in _documents_by_id(path).values() for text in texts]


def _judged(path: Path, split: str) -> Iterator[tuple[int, Nested]]:
    from retrieval.formats.trec import read_beir

    found = read_beir(path, split)
    documents = dict(zip(found.corpus_ids, found.corpus, strict=True))
    for number, (query, text) in enumerate(zip(found.query_ids, found.queries, strict=True), 1):
        grades = found.qrels[query]
        missing = next((d for d, grade in grades.items() if grade > 0 and d not in documents), None)
        if missing is not None:
            raise UserError(
                f"{path / 'corpus.jsonl'}: lacks document {missing!r}, which query {query!r} is judged with"
            )
        good = [documents[d] for d, grade in grades.items() if grade > 0]
        bad = [documents[d] for d, grade in grades.items() if grade <= 0 and d in documents]
        if good:
            yield number, Nested(text, good, bad)


def _documents_by_id(path: Path) -> dict[str, list[str]]:
    documents = {}
    for _, number, row in json_rows(Lines(path / "corpus.jsonl")):
        name = next((as_text(row[key]) for key in ("docid", "_id", "id") if key in row), None)
        if name is None:
            raise UserError(f"{path / 'corpus.jsonl'}: line {number} has no docid")
        read = partial(one_text, f"{path / 'corpus.jsonl'}: line {number}", "text")
        documents[name] = _texts(read, [{**row, "text": row.get("text", row.get("document_text"))}])
    return documents


def _by_ids(path: Path) -> Iterator[tuple[int, Nested]]:
    queries = path / "queries.jsonl"
    if not queries.is_file():
        raise UserError(f"{path}: has corpus.jsonl but neither qrels nor queries.jsonl; add judgments")
    documents = _documents_by_id(path)
    for _, number, row in json_rows(Lines(queries)):
        if "positive_document_ids" not in row:
            raise UserError(f"{queries}: line {number} has no positive_document_ids, and {path} has no folder qrels")
        asked = row.get("query_text") or row.get("query") or row.get("text")
        text = one_text(f"{queries}: line {number}", "query", asked)
        try:
            sides = [
                [t for name in row.get(key) or [] for t in documents[as_text(name)]]
                for key in ("positive_document_ids", "negative_document_ids")
            ]
        except KeyError as error:
            raise UserError(f"{queries}: line {number} names document {error}, which corpus.jsonl lacks") from None
        if not text or not sides[0]:
            raise UserError(f"{queries}: line {number} has no query text or no positives; complete or remove it")
        yield number, Nested(text, *sides)


def _json_file(path: Path) -> Iterator[tuple[int, Nested]]:
    try:
        whole = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, UnicodeDecodeError):
        raise UserError(f"{path}: is not JSON in UTF-8; give .jsonl for one object a line") from None
    if isinstance(whole, list) and whole and isinstance(whole[0], dict):
        columns = nested_columns(whole[0])
        if columns is None:
            raise UserError(f"{path}: its objects have no query and positives (found: {', '.join(whole[0])})")
        for number, row in enumerate(whole, 1):
            yield number, nested_row(str(path), number, row, columns)
        return
    keys = ("queries", "corpus", "relevant_docs")
    if not (isinstance(whole, dict) and all(isinstance(whole.get(key), dict) for key in keys)):
        raise UserError(f"{path}: is neither a list of queries with positives nor an object of {', '.join(keys)}")
    for number, (name, query) in enumerate(whole["queries"].items(), 1):
        wanted = whole["relevant_docs"].get(name, [])
        missing = next((d for d in wanted if d not in whole["corpus"]), None)
        if missing is not None:
            raise UserError(f"{path}: query {name!r} names document {missing!r}, which its corpus lacks")
        if wanted:
            asked, *good = (
                one_text(f"{path}: query {name!r}", "text", text)
                for text in (query, *(whole["corpus"][d] for d in wanted))
            )
            yield number, Nested(asked, good, [])
