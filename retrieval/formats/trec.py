"""Judgments and results of information retrieval: TREC's qrels and runs, BEIR's folders.

qrels   `query iteration document grade` in columns of white space (TREC), or `query document grade` (BEIR's .tsv, .csv; with a
        header or without)
run     `query Q0 document rank score tag`; ranks are read by nobody, scores count
BEIR    corpus.jsonl (_id, title, text), queries.jsonl (_id, text), qrels/SPLIT.tsv; or FlagEmbedding's SPLIT_queries.jsonl and
        SPLIT_qrels.jsonl (qid, docid, relevance)
"""

import csv
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from retrieval.data.columns import as_text, one_text, titled
from retrieval.data.rows import Lines, json_rows
from retrieval.errors import UserError

Qrels = dict[str, dict[str, int]]
"""By query, by document: the grade; above zero is relevant."""


class Run(NamedTuple):
    """By query the scores of documents. repeated: how many lines named a document of a query again; the highest counts."""

    scores: dict[str, dict[str, float]]
    repeated: int


class Beir(NamedTuple):
    """Ids and texts of the corpus (title and text together) and of the queries that are judged, and their judgments."""

    corpus_ids: list[str]
    corpus: list[str]
    query_ids: list[str]
    queries: list[str]
    qrels: Qrels


def read_qrels(path: Path) -> Qrels:
    """Raises UserError for a line that is no judgment, or two judgments of one document that differ."""
    found: Qrels = {}
    header = ("", "")  # query and grade of a first line whose grade is no integer
    for number, fields in _fields(path):
        if len(fields) == 4:
            query, _, document, said = fields
        elif len(fields) == 3:
            query, document, said = fields
        else:
            raise UserError(f"{path}: line {number} has {len(fields)} fields; a judgment has query, document and grade")
        try:
            grade = int(said)
        except ValueError:
            if number == 1:
                header = query, said
                continue
            raise UserError(f"{path}: line {number}: the grade {said!r} is no integer") from None
        if found.setdefault(query, {}).setdefault(document, grade) != grade:
            raise UserError(f"{path}: line {number} judges {document!r} of query {query!r} again, and differently")
    if header[0] in found:
        raise UserError(f"{path}: line 1: the grade {header[1]!r} is no integer")
    if not found:
        raise UserError(f"{path}: has no judgments; give lines of query, document and grade")
    return found


def read_run(path: Path) -> Run:
    """Raises UserError for a line that is no result."""
    scores: dict[str, dict[str, float]] = {}
    repeated = 0
    for number, fields in _fields(path):
        if len(fields) != 6:
            raise UserError(
                f"{path}: line {number} has {len(fields)} fields; a result is `query Q0 document rank score tag`"
            )
        try:
            score = float(fields[4])
        except ValueError:
            score = float("nan")
        if not isfinite(score):
            raise UserError(f"{path}: line {number}: the score {fields[4]!r} is no finite number")
        documents = scores.setdefault(fields[0], {})
        repeated += fields[2] in documents
        documents[fields[2]] = max(score, documents.get(fields[2], score))
    if not scores:
        raise UserError(f"{path}: has no results; give lines of `query Q0 document rank score tag`")
    return Run(scores, repeated)


def run_lines(query: str, documents: Iterable[tuple[str, float]]) -> bytes:
    """The lines of a run for a query's documents, best first. Raises UserError for a name that the format cannot hold."""
    ranked = list(documents)
    refuse_spaces("query", [query] if ranked else [])
    refuse_spaces("id", [document for document, _ in ranked])
    return "".join(
        f"{query} Q0 {document} {rank} {score:.9g} retrieval\n" for rank, (document, score) in enumerate(ranked, 1)
    ).encode()


def refuse_spaces(what: str, names: Iterable[str]) -> None:
    """Raise UserError for names that a run cannot hold; before a search, which may take long, as well as when it is written."""
    bad = [name for name in names if name.split() != [name]]
    if bad:
        more = f" (and {len(bad) - 1:,} more)" if len(bad) > 1 else ""
        raise UserError(f"{what} {bad[0]!r}{more}: TREC runs take no spaces in names; write .jsonl instead")


def read_beir(folder: Path, split: str = "test") -> Beir:
    """Raises UserError where a file is missing or damaged, or a judged query has no text."""
    judged, asked = folder / "qrels" / f"{split}.tsv", folder / "queries.jsonl"
    if (folder / f"{split}_qrels.jsonl").is_file():
        judged, asked = folder / f"{split}_qrels.jsonl", folder / f"{split}_queries.jsonl"
    if not judged.is_file():
        there = sorted({path.stem for path in (folder / "qrels").glob("*.tsv")})
        there += sorted(path.name.removesuffix("_qrels.jsonl") for path in folder.glob("*_qrels.jsonl"))
        raise UserError(f"{judged}: no such file; choose another split (found: {', '.join(there) or 'none'})")
    qrels = _json_qrels(judged) if judged.suffix == ".jsonl" else read_qrels(judged)
    corpus = dict(entries(folder / "corpus.jsonl"))
    queries = dict(entries(asked))
    missing = [query for query in qrels if query not in queries]
    if missing:
        raise UserError(f"{asked}: lacks {len(missing):,} of the judged queries, such as {missing[0]!r}")
    return Beir(list(corpus), list(corpus.values()), list(qrels), [queries[query] for query in qrels], qrels)


def _json_qrels(path: Path) -> Qrels:
    found: Qrels = {}
    for _, number, row in json_rows(Lines(path)):
        try:
            found.setdefault(as_text(row["qid"]), {})[as_text(row["docid"])] = int(row.get("relevance", 1))
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: line {number} is no judgment with qid, docid and relevance") from None
    return found


def _fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of each line that is not empty: split at tabs or commas where there are some, else at white space."""
    for number, line in enumerate(Lines(path), 1):
        line = line.strip("\r\n")
        tabbed = len(line.split("\t")) > 2
        if tabbed or ("," in line and len(line.split()) < 3):
            yield number, [cell.strip() for cell in next(csv.reader([line], delimiter="\t" if tabbed else ","))]
        elif line.strip():
            yield number, line.split()


def entries(path: Path) -> Iterator[tuple[str, str]]:
    """Id, and title and text, of each line."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; a BEIR folder has corpus.jsonl, queries.jsonl and qrels")
    seen = set()
    for _, number, entry in json_rows(Lines(path)):
        name = entry.get("_id", entry.get("id"))
        if name is None or "text" not in entry:
            raise UserError(f"{path}: line {number} is no JSON object with _id and text")
        if (name := as_text(name)) in seen:
            raise UserError(f"{path}: line {number}: id {name!r} stands more than once; ids must be unique")
        seen.add(name)
        title, text = (one_text(f"{path}: line {number}", key, entry.get(key)) for key in ("title", "text"))
        yield name, titled(title, text)
