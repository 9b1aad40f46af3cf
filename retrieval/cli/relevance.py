"""`retrieval eval relevance`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from retrieval.errors import UserError
from retrieval.wording import plural

from .commands import refuse_unused
from .evaluate import evaluate, keeps
from .evaluated import as_run, refuse_evaluation, rough, write_evaluation
from .options import checks, common, existing, pick_device, quiet_libraries, refuse_existing, uses_device
from .output import emit, progress, say

if TYPE_CHECKING:
    from retrieval.eval.relevance import Relevance
    from retrieval.formats.trec import Qrels, Run
    from retrieval.neighbors import Floats

NOTES = {  # what is counted, and what becomes of it
    "without_results": ("judged query", "without results, counted as 0"),
    "without_relevant": ("judged query", "without a relevant document, left out"),
    "not_judged": ("query", "with results but not judged, left out"),
    "repeated": ("result", "for a document that the query has already; the best score counts"),
    "themselves": ("result", "equal to the query itself, left out"),
    "unknown": ("relevant document", "not in the corpus, counted as missed"),
}


@evaluate.command()
@click.option("--qrels", type=existing("file"), help="Judgments: TREC's, or query, document, grade.")
@click.option("--run", type=existing("file"), help="Results in TREC's format, of any tool.")
@click.option("--queries", type=existing("folder"), help="A store of queries, searched for among --corpus.")
@click.option(
    "--corpus", type=existing("folder"), help="A store, searched exactly, or an index, searched as it is tuned."
)
@click.option("--beir", type=existing("folder"), help="A BEIR folder, encoded by --encoder and searched exactly.")
@click.option("--split", default="test", show_default=True, help="Which judgments of the BEIR folder.")
@click.option("--encoder", help="For --beir: a folder or a model's name.")
@click.option("-k", "ks", type=click.IntRange(min=1), multiple=True, help="Cut-offs.  [default: 1, 10, 100]")
@click.option(
    "--level", type=click.IntRange(min=1), default=1, show_default=True, help="The least grade that is relevant."
)
@click.option("--drop-self", is_flag=True, help="Leave out results whose id is the query's own.")
@click.option(
    "--run-output", type=click.Path(path_type=Path, dir_okay=False), help="Write the results in TREC's format."
)
@keeps
@checks
@uses_device
@common
def relevance(as_json: bool, **flags: Any) -> None:
    """How well ranked documents answer judged queries: nDCG, MAP, MRR, recall, precision and success, as trec_eval has them.

    \b
    Examples:
      retrieval eval relevance --qrels qrels.txt --run results.run
      retrieval eval relevance --qrels qrels.tsv --queries query-store --corpus store --output judged
      retrieval eval relevance --beir scifact --encoder all-MiniLM-L6-v2
    """
    from retrieval.eval.relevance import KS, evaluate_relevance, ranking

    _refuse_unclear(flags)
    refuse_existing(flags["overwrite"], flags["run_output"])
    refuse_evaluation(flags)
    ks = tuple(sorted(set(flags["ks"]))) or KS
    qrels, run, corpus = _results(flags, max(ks))
    found = evaluate_relevance(qrels, run, ks=ks, level=flags["level"], drop_self=flags["drop_self"], corpus=corpus)
    result = {
        "metrics": found.queries.means(),
        "intervals": found.queries.intervals(flags["seed"]),
        "counts": found.counts,
        "ks": list(ks),
        "level": flags["level"],
    }
    if flags["run_output"] is not None:
        from retrieval.artifact import writing_atomically
        from retrieval.formats.trec import run_lines

        with writing_atomically(flags["run_output"]) as file:
            for query, documents in ranking(run):
                file.write(run_lines(query, documents))
    if told := _strangers(qrels, run):
        result["warnings"] = [told]
        say(f"Warning: {told}")
    write_evaluation(flags, "relevance", result, {"": found.queries})
    emit(result, as_json, _lines(found, result, qrels, run, flags["drop_self"]))


def _strangers(qrels: "Qrels", run: "Run") -> str | None:
    """What to say where judgments and results have no document in common, which is most often a matter of names."""
    judged = dict.fromkeys(document for grades in qrels.values() for document in grades)
    found = dict.fromkeys(document for query in qrels for document in run.scores.get(query, ()))
    if not found or any(document in judged for document in found):
        return None
    some = [", ".join(repr(each) for each in list(names)[:2]) for names in (found, judged)]
    return f"no document that was found is judged (found {some[0]}; judged {some[1]}); do results and judgments name documents alike?"


def _refuse_unclear(flags: dict[str, Any]) -> None:
    ways = {
        "--run": flags["run"] is not None,
        "--queries and --corpus": flags["queries"] is not None or flags["corpus"] is not None,
        "--beir": flags["beir"] is not None,
    }
    if sum(ways.values()) != 1:
        raise UserError("give one of --run FILE, --queries STORE with --corpus STORE, and --beir FOLDER with --encoder")
    if (flags["queries"] is None) != (flags["corpus"] is None):
        raise UserError("--queries and --corpus: go together")
    if (flags["beir"] is None) != (flags["encoder"] is None):
        raise UserError("--beir and --encoder: go together")
    if (flags["qrels"] is None) == (flags["beir"] is None):
        raise UserError(
            "--qrels: is needed" if flags["beir"] is None else "--qrels: the BEIR folder has its own; leave it out"
        )
    if flags["beir"] is None:
        refuse_unused("is for a BEIR folder, and none is given", "--split")
    if flags["corpus"] is None:
        refuse_unused("is for stores and indexes, and none is given", "--check")
    if flags["run"] is not None:
        refuse_unused("--run names results, and nothing is searched", "--device")


def _results(flags: dict[str, Any], depth: int) -> "tuple[Qrels, Run, set[str] | None]":
    """Judgments, results, and the ids that could be found if they are known."""
    from retrieval.formats.trec import read_qrels, read_run

    if flags["beir"] is not None:
        return _of_beir(flags, depth)
    qrels = read_qrels(flags["qrels"])
    if flags["run"] is not None:
        return qrels, read_run(flags["run"]), None
    return qrels, *_of_stores(flags, depth)


def _of_stores(flags: dict[str, Any], depth: int) -> "tuple[Run, set[str]]":
    """Search a store exactly, or an index as it is tuned."""
    from retrieval.artifact import stated_kind
    from retrieval.index.bundle import open_index, read_queries
    from retrieval.index.search import search
    from retrieval.store import open_store

    index = None
    if stated_kind(flags["corpus"]) == "index":
        refuse_unused("--corpus is an index, which is searched on the CPU", "--device")
        index = open_index(flags["corpus"], check=flags["check"])
    corpus = open_store(flags["corpus"], check=flags["check"]) if index is None else index.rows
    if not corpus.count:
        raise UserError(f"{flags['corpus']}: has no rows; there is nothing to search")
    asked = read_queries(corpus.manifest, flags["queries"], check=flags["check"])
    ids = [str(i) for i in corpus.ids_between(0, corpus.count)]
    _refuse_spaces(flags, asked.ids, ids)
    metric = corpus.manifest["metric"]
    if index is None:
        scores, rows = _exact(asked.embeddings, corpus, depth, metric, flags["device"])
    else:
        found = search(index, asked.embeddings, min(depth + 1, len(ids)))
        scores, rows = found.scores, found.rows
    return as_run([str(i) for i in asked.ids], ids, scores, rows, metric), set(ids)


def _refuse_spaces(flags: dict[str, Any], queries: Any, corpus: list[str]) -> None:
    """Before the search, which may take long."""
    from retrieval.formats.trec import refuse_spaces

    if flags["run_output"] is not None:
        refuse_spaces("query", map(str, queries))
        refuse_spaces("id", corpus)


def _of_beir(flags: dict[str, Any], depth: int) -> "tuple[Qrels, Run, set[str]]":
    """Encode corpus and queries, and search exactly."""
    from retrieval.data import Texts
    from retrieval.embed import encode_all
    from retrieval.encoder import load_encoder
    from retrieval.formats.trec import read_beir

    beir = read_beir(flags["beir"], flags["split"])
    _refuse_spaces(flags, beir.query_ids, beir.corpus_ids)
    quiet_libraries()
    encoder = load_encoder(flags["encoder"], pick_device(flags["device"]))
    encoded = []
    for what, texts in (("queries", beir.queries), ("corpus", beir.corpus)):
        with progress(what, len(texts)) as bar:
            role = "query" if what == "queries" else "document"
            encoded.append(encode_all(encoder, Texts({"text": texts}, None, None, ""), role=role, progress=bar))
    scores, rows = _exact(encoded[0], encoded[1], depth, "cosine", flags["device"])
    return beir.qrels, as_run(beir.query_ids, beir.corpus_ids, scores, rows, "cosine"), set(beir.corpus_ids)


def _exact(queries: "Floats", corpus: Any, depth: int, metric: str, device: str | None) -> tuple[Any, Any]:
    from retrieval.neighbors import exact_neighbors

    # One more than is judged, for --drop-self.
    return exact_neighbors(queries, corpus, min(depth + 1, len(corpus)), metric=metric, device=pick_device(device))


def _lines(found: "Relevance", result: dict[str, Any], qrels: "Qrels", run: "Run", drop_self: bool) -> list[str]:
    lines = [f"{'':<14}{'mean':>8}   95 % interval"]
    for name, value in result["metrics"].items():
        low, high = result["intervals"][name]
        lines.append(f"{name:<14}{value:>8.4f}   {low:.4f}–{high:.4f}")
    lines += ["", plural(found.counts["queries"] or 0, "judged query")]
    for name, count in found.counts.items():
        if name in NOTES and count:
            what, becomes = NOTES[name]
            lines.append(f"{plural(count, what)} {becomes}")
    lines += rough(len(found.queries.ids))
    depth, deepest = max((len(each) for each in run.scores.values()), default=0), max(result["ks"])
    if depth < deepest:
        lines.append(f"no query has more than {depth:,} results, so figures at {deepest:,} are of those")
    same = sum(query in run.scores.get(query, ()) for query in qrels)
    if same and not drop_self:
        finds = "finds a document of its" if same == 1 else "find a document of their"
        lines.append(f"{plural(same, 'query')} {finds} own id; if that is the query itself, add --drop-self")
    return lines
