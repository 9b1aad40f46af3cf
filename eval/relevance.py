"""How well ranked documents answer judged queries: the measures of trec_eval.

For a query with the relevant documents R (grade of `level` or more), the first k of its ranking, rel_i whether the i-th is
relevant and grade_i its grade (0 if it was not judged, or below 0):

    ndcg@k      Σ_{i ≤ k} grade_i / log2(i + 1), divided by the same of the best ranking    (Järvelin, Kekäläinen, TOIS 2002)
    map@k       (1/|R|) Σ_{i ≤ k} P@i · rel_i                                               (trec_eval's map_cut)
    mrr@k       1/rank of the first relevant document, 0 if none is among the first k
    recall@k    share of R among the first k
    p@k         share of the first k that is relevant, also where there are fewer results than k
    success@k   1 if any of the first k is relevant

Documents rank by score, rounded to float32, equal ones by id from high to low, as in trec_eval. The means are over the judged
queries that have a relevant document: one without results counts as 0 (trec_eval -c), one without a relevant document, and
results of a query that was not judged, are left out and counted.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from retrieval.errors import UserError
from retrieval.formats.trec import Qrels, Run
from retrieval.intervals import Doubles

from .values import PerQuery, first_of_each

KS = (1, 10, 100)
MEANINGS = {
    "ndcg": "gains of the first k, each over log₂ (1 + rank), as a share of what the best order has",
    "map": "precision at each relevant one of the first k, added up over how many are relevant in all",
    "mrr": "one over the rank of the first relevant one, 0 where it is not among the first k",
    "recall": "share of the relevant ones that is among the first k",
    "p": "share of the first k that is relevant",
    "success": "whether a relevant one is among the first k",
}


@dataclass(frozen=True)
class Relevance:
    """counts: queries (that the means are over), without_results, without_relevant, not_judged, repeated results, themselves
    (results that are the query, left out), unknown (judged relevant, but not in the corpus; None if that is not known)."""

    queries: PerQuery
    counts: dict[str, int | None]


def evaluate_relevance(
    qrels: Qrels,
    run: Run,
    *,
    ks: tuple[int, ...] = KS,
    level: int = 1,
    drop_self: bool = False,
    corpus: set[str] | None = None,
) -> Relevance:
    """Judge a run. drop_self: leave out results whose id is the query's. corpus: the ids that could be found.

    Raises UserError where no query has results and a relevant document.
    """
    answerable = [query for query, grades in qrels.items() if max(grades.values()) >= level]
    if not answerable:
        highest = max(max(grades.values()) for grades in qrels.values())
        raise UserError(f"no judgment has a grade of {level}; the highest is {highest}")
    if not any(query in run.scores for query in answerable):
        raise UserError(
            f"none of the {len(run.scores):,} queries with results has a relevant document "
            f"(results of {_some(run.scores)}; judgments of {_some(qrels)}); do the two name queries alike?"
        )
    themselves = 0
    values: dict[str, Doubles] = {}
    for row, query in enumerate(answerable):
        found = run.scores.get(query, {})
        if drop_self and query in found:
            themselves += 1
            found = {document: score for document, score in found.items() if document != query}
        for name, value in _measured(qrels[query], ranked(found)[: max(ks)], ks, level).items():
            values.setdefault(name, np.zeros(len(answerable)))[row] = value
    counts = {
        "queries": len(answerable),
        "without_results": sum(query not in run.scores for query in answerable),
        "without_relevant": len(qrels) - len(answerable),
        "not_judged": sum(query not in qrels for query in run.scores),
        "repeated": run.repeated,
        "themselves": themselves,
        "unknown": None
        if corpus is None
        else len({d for q in answerable for d, grade in qrels[q].items() if grade >= level} - corpus),
    }
    order = [f"{measure}@{k}" for measure in ("ndcg", "map", "mrr", "recall", "p", "success") for k in ks]
    return Relevance(PerQuery(answerable, None, {name: values[name] for name in order}), counts)


def ranked(scores: dict[str, float]) -> list[str]:
    """Documents, best first."""
    rounded = np.array(list(scores.values()), np.float32).tolist()
    return [document for _, document in sorted(zip(rounded, scores, strict=True), reverse=True)]


def ranking(run: Run) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """Each query with its documents and scores, best first."""
    for query, scores in run.scores.items():
        yield query, [(document, scores[document]) for document in ranked(scores)]


def _measured(grades: dict[str, int], documents: list[str], ks: tuple[int, ...], level: int) -> dict[str, float]:
    depth = max(ks)
    gains = np.zeros(depth)
    gains[: len(documents)] = [max(0, grades.get(document, 0)) for document in documents]
    relevant = np.zeros(depth, bool)
    relevant[: len(documents)] = [grades.get(document, level - 1) >= level for document in documents]
    best = np.zeros(max(depth, len(grades)))
    best[: len(grades)] = sorted((max(0, grade) for grade in grades.values()), reverse=True)
    discounts = 1 / np.log2(np.arange(2, len(best) + 2))
    hits, ranks = relevant.cumsum(), np.arange(1, depth + 1)
    count = sum(grade >= level for grade in grades.values())
    first = int(relevant.argmax()) + 1 if relevant.any() else depth + 1
    values = {}
    for k in ks:
        ideal = float((best[:k] * discounts[:k]).sum())
        values[f"ndcg@{k}"] = float((gains[:k] * discounts[:k]).sum()) / ideal if ideal else 0.0
        values[f"map@{k}"] = float((hits[:k] / ranks[:k] * relevant[:k]).sum()) / count
        values[f"mrr@{k}"] = 1 / first if first <= k else 0.0
        values[f"recall@{k}"] = hits[k - 1] / count
        values[f"p@{k}"] = hits[k - 1] / k
        values[f"success@{k}"] = float(hits[k - 1] > 0)
    return values


def meanings(metrics: Iterable[str]) -> dict[str, str]:
    """What metrics such as "ndcg@10" say, for people: each measure once, at its first k."""
    return {name: MEANINGS[measure] for measure, name in first_of_each(metrics).items() if measure in MEANINGS}


def _some(names: dict[str, dict[str, float]] | Qrels) -> str:
    return ", ".join(repr(name) for name in list(names)[:2])
