"""One self-contained HTML page: what changed from before training to after, in figures and in pictures."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from PIL import Image

from retrieval.neighbors import Floats, Ints, exact_neighbors

from .clusters import NAMES, ClusterMetrics
from .plots import COLOURS, MAPPED, legend, map_points, scatter, similarity_histogram

TITLES = {
    "r@1": "R@1",
    "r@10": "R@10",
    "r-precision": "R-precision",
    "map@r": "MAP@R",
    "knn@20": "kNN@20",
    "nmi": "NMI",
    "ami": "AMI",
    "ari": "ARI",
}

STYLE = """
:root{color-scheme:light dark;--ink:#1d232b;--soft:#5c6773;--line:#d9dee4;--paper:#fff;--good:#1a7f45;--bad:#c9362b}
@media(prefers-color-scheme:dark){:root{--ink:#e8ecf1;--soft:#9aa5b1;--line:#39424d;--paper:#14181d;--good:#56c983;--bad:#ff7a6e}}
*{box-sizing:border-box}body{margin:0 auto;max-width:52rem;padding:1.2rem;font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
h1{font-size:1.6rem;line-height:1.2;margin:.4rem 0}h2{font-size:1.3rem;margin:2.6rem 0 .4rem;border-top:1px solid var(--line);padding-top:1.2rem}
h3{font-size:1rem;margin:1.6rem 0 .4rem}p{margin:.4rem 0}.note{color:var(--soft);font-size:.9rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{padding:.3rem .5rem;text-align:right;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:500;font-size:.85rem}.up{color:var(--good);font-weight:600}.down{color:var(--bad);font-weight:600}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));gap:1rem}figure{margin:0}figcaption{color:var(--soft);font-size:.85rem}
svg{width:100%;height:auto;border:1px solid var(--line);border-radius:6px}svg text{font:11px system-ui;fill:var(--soft)}
.legend span{display:inline-block;margin-right:.8rem;white-space:nowrap}.legend i{display:inline-block;width:.7rem;height:.7rem;border-radius:50%;margin-right:.3rem}
.row{display:flex;gap:.3rem;align-items:center;margin:.25rem 0;overflow-x:auto}.row small{flex:0 0 3.4rem;color:var(--soft)}
.row img{width:44px;height:44px;border-radius:5px;border:3px solid transparent;image-rendering:pixelated;flex:none}.row img.query{border-color:var(--line);margin-right:.5rem}.row img.wrong{border-color:var(--bad)}
ol{padding-left:1.3rem;margin:.3rem 0}li{margin:.2rem 0;overflow-wrap:anywhere}li b{font-weight:600}li.wrong b{color:var(--bad)}code{font-size:.9em}
.big{font-size:1.05rem}
"""


@dataclass(frozen=True)
class Section:
    """One data set: the same items (vectors (n, d), n labels) before and after training, and n pictures or n texts to show."""

    title: str
    summary: str
    labels: list[str]
    before: Floats
    after: Floats
    metrics_before: ClusterMetrics
    metrics_after: ClusterMetrics
    pictures: Sequence[Image.Image] | None = None
    texts: Sequence[str] | None = None
    searches: list[tuple[str, list[tuple[float, str, str]]]] = field(default_factory=list)
    """Query and its hits: score, id, text."""


def render(title: str, lead: str, sections: list[Section], foot: str, seed: int = 0) -> str:
    """The whole page; nothing is loaded from elsewhere."""
    body = "".join(_section(section, seed) for section in sections)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{escape(title)}</h1><p class=big>{escape(lead)}</p>{body}<p class=note>{escape(foot)}</p></html>"
    )


def _section(section: Section, seed: int) -> str:
    shown = _mapped_rows(section.labels, seed)
    labels = [section.labels[row] for row in shown]
    maps = "".join(
        f"<figure>{scatter(map_points(vectors[shown], seed), labels)}<figcaption>{name}</figcaption></figure>"
        for name, vectors in (("before", section.before), ("after", section.after))
    )
    largest = "<p class=note>The ten largest classes.</p>" if len(set(labels)) < len(set(section.labels)) else ""
    histograms = "".join(
        f"<figure>{similarity_histogram(vectors, section.labels, seed)}<figcaption>{name}</figcaption></figure>"
        for name, vectors in (("before", section.before), ("after", section.after))
    )
    return (
        f"<h2>{escape(section.title)}</h2><p>{escape(section.summary)}</p>{metrics_table(section)}"
        f"<h3>Map: each point an item, coloured by class</h3><div class=two>{maps}</div>{legend(labels)}{largest}"
        f"<h3>Cosine of two items: <span style='color:#4269d0'>same class</span> and "
        f"<span style='color:#767f8b'>different classes</span></h3><div class=two>{histograms}</div>"
        f"<p class=note>The less the two overlap, the better a search tells the classes apart.</p>"
        f"{_searches(section)}{_examples(section, seed)}"
    )


def _mapped_rows(labels: list[str], seed: int) -> Ints:
    """Rows for the map: of the classes that have a colour of their own, the largest, and not too many."""
    largest = {name for name, _ in Counter(labels).most_common(len(COLOURS))}
    rows = np.array([row for row, label in enumerate(labels) if label in largest])
    return np.random.default_rng(seed).permutation(rows)[:MAPPED]


def metrics_table(section: Section) -> str:
    rows = []
    for name in (name for name in NAMES if name in section.metrics_before):
        before, after = section.metrics_before[name], section.metrics_after[name]
        change = after - before
        rows.append(
            f"<tr><td>{TITLES[name]}<td>{before:.3f}<td>{after:.3f}<td class={'up' if change >= 0 else 'down'}>{change:+.3f}"
        )
    m = section.metrics_after
    single = f"; {m['singletons']} classes of one are not queries" if m["singletons"] else ""
    return (
        f"<table><tr><th>metric<th>before<th>after<th>change{''.join(rows)}</table>"
        f"<p class=note>{m['n']:,} items of {m['classes']:,} classes, none of them trained on{single}.</p>"
    )


def _searches(section: Section) -> str:
    if not section.searches:
        return ""
    blocks = "".join(
        f"<p><code>{escape(query)}</code></p><ol>"
        + "".join(
            f"<li><b>{escape(name)}</b> {escape(text)} <span class=note>{score:.2f}</span>"
            for score, name, text in hits
        )
        + "</ol>"
        for query, hits in section.searches
    )
    return f"<h3>Search</h3>{blocks}"


def _examples(section: Section, seed: int, queries: int = 6, k: int = 8) -> str:
    """A few queries drawn at random, half of them among those that were wrong before, with their neighbours."""
    rows = _interesting(section, seed, queries)
    found = {
        name: exact_neighbors(vectors[rows], vectors, min(k, len(vectors) - 1), self_rows=rows).ids
        for name, vectors in (("before", section.before), ("after", section.after))
    }
    if section.pictures is not None:
        pictures = section.pictures
        blocks = []
        for i, row in enumerate(rows):
            for name, ids in found.items():
                line = "".join(_thumbnail(pictures[j], section.labels[j], section.labels[row]) for j in ids[i])
                blocks.append(
                    f"<div class=row><small>{name}</small>{_thumbnail(pictures[row], section.labels[row], None)}{line}</div>"
                )
            blocks.append("<div style='height:.6rem'></div>")
        return f"<h3>Nearest neighbours (first picture: the query; red: another class)</h3>{''.join(blocks)}"
    assert section.texts is not None
    blocks = []
    for i, row in enumerate(rows[: queries // 2]):
        lists = "".join(
            f"<figure><figcaption>{name}</figcaption><ol>{''.join(_text_hit(section, j, row) for j in ids[i][:4])}</ol></figure>"
            for name, ids in found.items()
        )
        blocks.append(
            f"<p><b>{escape(section.labels[row])}</b> {escape(_short(section.texts[row]))}</p><div class=two>{lists}</div>"
        )
    return f"<h3>Nearest neighbours (red: another class)</h3>{''.join(blocks)}"


def _interesting(section: Section, seed: int, count: int) -> Ints:
    nearest = exact_neighbors(section.before, section.before, 1, self_rows=np.arange(len(section.before))).ids[:, 0]
    labels = np.asarray(section.labels, dtype=object)
    order = np.random.default_rng(seed).permutation(len(labels))
    wrong = order[labels[nearest[order]] != labels[order]]
    half = wrong[: count // 2]
    return np.concatenate([half, order[~np.isin(order, half)][: count - len(half)]])


def _thumbnail(picture: Image.Image, label: str, query_label: str | None) -> str:
    small = picture.copy()
    small.thumbnail((64, 64))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    kind = "query" if query_label is None else ("" if label == query_label else "wrong")
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="{kind}" alt="{escape(label)}" title="{escape(label)}" src="data:image/png;base64,{content}">'


def _text_hit(section: Section, row: int, query: int) -> str:
    assert section.texts is not None
    wrong = "" if section.labels[row] == section.labels[query] else " class=wrong"
    return f"<li{wrong}><b>{escape(section.labels[row])}</b> {escape(_short(section.texts[row]))}"


def _short(text: str, length: int = 110) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[: length - 1] + "…"
