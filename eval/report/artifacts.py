"""What other commands wrote, as sections: evaluations of three kinds, comparisons, runs of training, sweeps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from retrieval.data import shortened
from retrieval.errors import UserError
from retrieval.images import decode, picture_at

from ..pairs import meaning
from ..relevance import meanings
from ..values import PerQuery, first_of_each
from .figures import Figure, forest, hardness, lines, recall_speed, spectrum
from .items import DESCRIBED, GEOMETRY
from .page import Section
from .pictures import thumbnail

WORST = 20
TOLD = ("ndcg@10", "t2i_mrr", "i2i_mrr")  # the metric by which queries are told apart, the first that is there
MEASURES = {  # of clusters, by what they are called without their k; the others are DESCRIBED
    "r": "one of the first k is of the same class",
    "p": "share of the first k that is of the same class",
    "map": "precision at each of these among the first k, added up over how many there are in all",
    "map/min": "the same over how many of them can be among the first k",
    "mrr": "one over the rank of the first item of the same class",
    "knn/.1": "a vote of the two hundred nearest gives the right class",
    "knn/.5": "the same with weights that differ less",
    "homogeneity": "each cluster of k-means is of one class",
    "completeness": "each class is in one cluster",
    "linear-probe": "a linear classifier gives the right class to items that it was not fitted to",
    "nc3": "how far its weights are from the class means; 0 when collapsed",
    "nc4": "how often it and the nearest class mean decide differently; 0 when collapsed",
}
Plain = Mapping[str, Any]


def clusters_section(title: str, evaluation: Plain) -> Section:
    """Of `eval clusters --output`: figures with intervals, classes, what is mixed up, geometry."""
    metrics = evaluation["metrics"]
    figures = {"spectrum": spectrum("spectrum", {title: evaluation["spectrum"]})} if "spectrum" in evaluation else {}
    shown = {
        "described": _described([name for name in metrics if name not in GEOMETRY]),
        "geometry_of": {name: told for name, told in GEOMETRY.items() if name in metrics},
        "worst": sorted(evaluation.get("per_class", ()), key=lambda row: (row.get("map@r", 0), row["class"])),
    }
    return Section("clusters", title, dict(evaluation), figures, shown)


def _described(metrics: Sequence[str]) -> dict[str, str]:
    """What each says; what several say at their own k is told once."""
    first = first_of_each(name for name in metrics if name not in DESCRIBED)
    told = {name: MEASURES.get(measure, "") for measure, name in first.items()}
    return {name: DESCRIBED.get(name) or told.get(name, "") for name in metrics}


def relevance_section(title: str, evaluation: Plain, queries: PerQuery) -> Section:
    """Of `eval relevance --output`: figures with intervals and what they mean, and the queries that did least well."""
    metric = next((name for name in TOLD if name in queries.values), next(iter(queries.values)))
    scores = queries.values[metric]
    worst = [(queries.ids[at], float(scores[at])) for at in np.argsort(scores, kind="stable")[:WORST].tolist()]
    edges = np.linspace(0, 1, 21)
    shares = np.histogram(scores, edges)[0] / len(scores)

    def draw(axes: Any) -> None:
        axes.stairs(shares, edges, fill=True, alpha=0.6)
        axes.set(xlabel=metric, ylabel="share of queries", xlim=(0, 1))

    figure = Figure("queries", f"How {metric} is spread over queries, mean {scores.mean():.2f}", draw)
    shown = {
        "of": "queries",
        "metric": metric,
        "worst": worst,
        "pairs": {},
        "described": meanings(evaluation["metrics"]),
        "counts": evaluation.get("counts", {}),
    }
    return Section("relevance", title, dict(evaluation), {"queries": figure}, shown)


def pairs_section(title: str, evaluation: Plain, queries: PerQuery, told: Mapping[str, Sequence[str]]) -> Section:
    """Of `eval pairs --output`: the same of pairs. told: anchor and positive of each query, if they are known."""
    section = relevance_section(title, evaluation, queries)
    one, other = ("pictures", "captions") if "t2i_mrr" in queries.values else ("first pictures", "second pictures")
    names = {"different_documents": f"different {one}", "different_queries": f"different {other}"}
    return replace(
        section,
        shown=section.shown
        | {
            "of": "pairs",
            "pairs": {query: [_shown(item) for item in told.get(query, ())] for query, _ in section.shown["worst"]},
            "described": {name: meaning(name) for name in evaluation["metrics"]},
            "counts": {names.get(name, name): count for name, count in evaluation["counts"].items()},
        },
    )


def _shown(item: str) -> dict[str, str]:
    """In words, and as a picture if it is one that is where it was."""
    found = picture_at(item)
    try:
        picture = thumbnail(decode(found)) if found is not None else ""
    except UserError:  # a caption that is also the name of a file
        picture = ""
    return {"words": shortened(item, 140), "picture": picture}


def recall_section(title: str, evaluation: Plain) -> Section:
    """Of `eval recall --output`: recall against speed, and what that changes for the task."""
    return Section("recall", title, dict(evaluation), {"speed": recall_speed("recall-speed", evaluation["points"])})


def comparison_section(title: str, comparison: Plain) -> Section:
    """Of `eval compare --output`: differences with intervals and their verdicts."""
    rows = [
        (f"{each['second']}, {each['metric']}", each["difference"], tuple(each["interval"]))
        for each in comparison["comparisons"]
    ]
    figures = {"differences": forest("differences", rows, comparison["comparisons"][0]["first"])}
    return Section("comparison", title, dict(comparison), figures, {"meaning": meaning})


def run_section(title: str, config: Plain, metrics: Plain | None, curve: Sequence[Mapping[str, float]]) -> Section:
    """Of a training run: settings, before and after, the course of the loss and of what it could see."""
    columns = {name: [step[name] for step in curve] for name in curve[0]}
    figures = {"loss": lines("loss", "The loss over training steps", {"loss": columns["loss"]}, "step", "loss")}
    seen = {name: columns[name] for name in ("negatives", "ess") if name in columns}
    if seen:
        told = {"negatives": "there are", "ess": "effectively"}
        of = {told[name]: each for name, each in seen.items()}
        figures["ess"] = lines("negatives", "Negatives of an anchor: how many there are, and how many count", of, "step", "negatives of an anchor")  # fmt: skip
    plain = {name: value for name, value in config.items() if not isinstance(value, dict | list) and value is not None}
    if isinstance(config.get("data"), list):  # texts may be read from several files
        plain["data"] = ", ".join(config["data"])
    values = {"config": dict(config), "metrics": metrics, "curve": columns}
    judged = {name: meaning(name) for each in (metrics or {}).values() for name in each["metrics"]}
    return Section("run", title, values, figures, {"settings": plain, "described": judged | DESCRIBED})


def sweep_section(title: str, sweep: Plain) -> Section:
    """Of a sweep: quality against hardness, the recommended setting, and the command that trains it."""
    figure = hardness("hardness", sweep["points"], sweep["chosen_by"])
    return Section("sweep", title, dict(sweep), {"hardness": figure})


def searches_section(title: str, searches: Sequence[tuple[str, Sequence[tuple[float, str, str]]]]) -> Section:
    """Queries and their hits: score, id, text."""
    values = [
        {"query": query, "hits": [{"score": score, "id": name, "text": text} for score, name, text in hits]}
        for query, hits in searches
    ]
    return Section("searches", title, {"searches": values})
