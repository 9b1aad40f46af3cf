"""Who is what to whom: which rows are anchors, which are candidates, and which of these are the anchor's positives.

Letters: V views of B pairs (V = 2: anchor and positive), A anchors, C candidates, M = V − 1 positives of a pair, d dimensions.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .config import LossConfig

UNKNOWN = torch.iinfo(torch.int64).min  # a label or identity that equals nothing


@dataclass(frozen=True)
class Task:
    """Anchors (A, d) against candidates (C, d), both unit; each index is a column among the candidates.

    number: (A,) place of each anchor among the `total` ones of all processes together.
    raw: both as they came, where they came in half precision.
    own: (A,) the anchor itself, None where it is no candidate. partners: (A, M) the rest of its pair. labels, items: of
    anchors and of candidates, (A,) and (C,), None where not known. guide: a guide encoder's unit embeddings of both.
    own_explicit: (A,) pair of each anchor and (C,) pair that an explicit negative belongs to, or UNKNOWN.
    """

    anchors: Tensor
    candidates: Tensor
    number: Tensor
    total: int
    own: Tensor | None
    partners: Tensor
    raw: tuple[Tensor, Tensor] | None = None
    labels: tuple[Tensor, Tensor] | None = None
    items: tuple[Tensor, Tensor] | None = None
    guide: tuple[Tensor, Tensor] | None = None
    own_explicit: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Known:
    """What one process knows of its rows, view by view; `everywhere` is the same of all processes together.

    views: (V, B, d) unit; raw: as they came, where in half precision. labels: (B,). items: (V, B). guide: (V, B, g).
    """

    views: Tensor
    labels: Tensor | None
    items: Tensor | None
    guide: Tensor | None
    raw: Tensor | None = None


@dataclass(frozen=True)
class Extra:
    """Candidates that are nobody's pair: explicit negatives and embeddings of past batches. Fields as in `Known`, (K, …)."""

    rows: Tensor
    labels: Tensor | None = None
    items: Tensor | None = None
    guide: Tensor | None = None
    raw: Tensor | None = None
    pair: Tensor | None = None


def tasks(here: Known, everywhere: Known, first: int, extra: Extra | None, config: LossConfig) -> list[Task]:
    """The tasks whose means are averaged. `here` are the anchors, `first` the number of their first pair in `everywhere`."""
    views = list(range(len(here.views)))
    if config.within_side:
        sides = views if config.directions == "symmetric" else views[:1]
        task = _task(here, everywhere, first, extra, sides, views)
        return [_by_pair(task, len(views)) if config.entry == "joint" else task]
    forward = _task(here, everywhere, first, extra, [0], views[1:])
    if config.directions == "forward":
        return [forward]
    backward = [_task(here, everywhere, first, None, [v], [u for u in views if u != v]) for v in views[1:]]
    return [forward, *backward]


def _by_pair(task: Task, views: int) -> Task:
    """The same with the anchors of a pair following one another."""
    order = torch.arange(len(task.anchors), device=task.anchors.device).view(views, -1).T.flatten()
    names = ("labels", "items", "guide", "raw", "own_explicit")
    known = {name: getattr(task, name) for name in names}
    changed: dict[str, Any] = {name: (pair[0][order], pair[1]) for name, pair in known.items() if pair is not None}
    changed |= {name: getattr(task, name)[order] for name in ("anchors", "number", "partners")}
    return replace(task, own=None if task.own is None else task.own[order], **changed)


def _task(here: Known, everywhere: Known, first: int, extra: Extra | None, sides: list[int], among: list[int]) -> Task:
    """The views in `sides` as anchors, those in `among` as candidates, then the extra ones."""
    device = here.views.device
    pairs, all_pairs = here.views.shape[1], everywhere.views.shape[1]
    pair = torch.arange(first, first + pairs, device=device)

    def column(view: int) -> Tensor:
        return among.index(view) * all_pairs + pair

    same = here is everywhere and sides == among and extra is None  # then the candidates take no memory of their own
    own = torch.cat([column(v) for v in sides]) if set(sides) <= set(among) else None
    partners = [torch.stack([column(u) for u in among if u != v], 1) for v in sides]

    def both(name: str, by_view: bool) -> tuple[Tensor, Tensor] | None:
        """A field of `Known`, of the anchors and of the candidates."""
        mine, all_of_it, more = getattr(here, name), getattr(everywhere, name), getattr(extra, name, None)
        if mine is None:
            return None
        anchors = _rows(mine, sides) if by_view else mine.repeat(len(sides))
        if same:
            return anchors, anchors
        candidates = [all_of_it[v] if by_view else all_of_it for v in among]
        if extra is not None:
            assert more is not None or name in ("labels", "items"), f"{name} of the extra candidates is needed"
            candidates.append(more if more is not None else mine.new_full((len(extra.rows),), UNKNOWN))
        return anchors, torch.cat(candidates)

    anchors = _rows(here.views, sides)
    candidates = [] if same else [_rows(everywhere.views, among), *([extra.rows] if extra is not None else [])]
    explicit = None
    if extra is not None and extra.pair is not None:
        nobody = torch.full((len(among) * all_pairs,), UNKNOWN, device=device)
        explicit = (pair.repeat(len(sides)), torch.cat([nobody, extra.pair]))
    return Task(
        anchors=anchors,
        candidates=torch.cat(candidates) if candidates else anchors,
        number=torch.cat([side * all_pairs + pair for side in range(len(sides))]),
        total=len(sides) * all_pairs,
        own=own,
        partners=torch.cat(partners),
        raw=both("raw", by_view=True) if extra is None or extra.raw is not None else None,
        labels=both("labels", by_view=False),
        items=both("items", by_view=True),
        guide=both("guide", by_view=True),
        own_explicit=explicit,
    )


def _rows(x: Tensor, views: list[int]) -> Tensor:
    """Some views (V, B, …) one after the other; all of them without a copy."""
    return x.flatten(0, 1) if views == list(range(len(x))) else torch.cat([x[v] for v in views])
