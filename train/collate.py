"""Rows of training data as an encoder reads them: texts tokenised, those of one length together, so that little is padding; pictures
as they are held, or decoded."""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from retrieval.cpus import usable_cpus
from retrieval.data import text_codes
from retrieval.data.texts import taken
from retrieval.routes import reader
from retrieval.tokens import (
    CPU_TOKENS,
    GPU_TOKENS,
    Features,
    Ints,
    Tokens,
    batches_by_length,
    pad,
    tokenise,
    tokenises_apart,
)

from .batches import MISSING, Pairs, Plan, Rows
from .head import Frozen
from .pictures import Pictures
from .related import Related, identities

Batch = dict[str, Any]
Column = Sequence[str] | Rows
WORKERS = 2  # processes that tokenise while a GPU runs; a CPU has no cores to spare


@dataclass(frozen=True)
class Source:
    """A data set that is trained on: by row its anchors, positives, negatives…, each column of texts, of which a row may lack some
    (""), or of rows of the collator's pictures; what stands before anchors and before other texts; (2, n) codes of the anchors
    and the positives; its batches, and the share of all batches that are its.

    first_class: what its classes count from, so that no two data sets share one. guide: its texts under the encoder that judges what
    is a false negative.
    """

    columns: Sequence[Column]
    prompts: tuple[str | None, str | None]
    codes: Rows
    plan: Plan
    weight: float = 1.0
    first_class: int = 0
    guide: Frozen | None = None

    @cached_property
    def related(self) -> Related:
        return Related(self.codes)


class Settled(NamedTuple):
    """Texts whose vectors training leaves as they are: the row of each in `vectors` (u, d)."""

    rows: dict[str, int]
    vectors: Tensor


@dataclass(frozen=True)
class Collator:
    """A process's share of a batch → {"chunks": features of some of its items each, "batch": what the loss is told of them}. Where
    the texts are `settled`, their vectors stand in place of features.

    A chunk has at most `most` items, where that is given; of pictures else all, or with `apart` those of one column (whose batch
    statistics are then its own).
    batch: order (items,), where in the chunks, one after the other, each column's items stand, column after column; the rest is what
    `ContrastiveLoss` is given by these names, but for embeddings: items, codes, labels, guide, and of negatives their own.
    """

    model: SentenceTransformer
    sources: Sequence[Source]
    most: int | None = None
    pictures: Pictures | None = None
    apart: bool = False
    settled: Settled | None = None

    def __call__(self, share: "Share") -> Batch:
        (anchors, positives), items, known = share.pairs, share.items, share.known
        source = self.sources[share.source]
        negatives = [_taken(column, anchors) for column in source.columns[2:]]
        columns = [_taken(source.columns[0], anchors), _taken(source.columns[1], positives)]
        columns += [_there(column) for column in negatives]
        chunks, order = self._chunks(columns, source.prompts)
        codes = np.concatenate([source.codes[0][anchors], source.codes[1][positives]])
        batch = {"order": order, "items": items.flatten(), "codes": codes}
        if source.plan.labels is not None:
            batch["labels"] = source.plan.labels[anchors] + source.first_class
        if negatives:
            own = [pair for column in negatives for pair, item in enumerate(column) if _is_there(item)]
            codes = np.concatenate([codes_of(column, self.pictures) for column in columns[2:]])
            batch["negative_items"] = np.array([known.get(code, code) for code in codes.tolist()], np.int64)
            batch["negative_pairs"] = np.array(own, np.int64)
        told = {name: torch.from_numpy(value) for name, value in batch.items()}
        if source.guide is not None:
            told["guide"] = source.guide.of_pairs(share.pairs)
            told |= {"guide_negative": source.guide.of_negatives(anchors)} if negatives else {}
        return {"chunks": chunks, "batch": told}

    def on_device(self, chunk: Features) -> Features:
        """A chunk as the encoder takes it, from what the loader gave and the trainer brought to the device."""
        if "rows" in chunk or "squares" in chunk:
            assert self.pictures is not None
            return self.pictures.views(chunk)
        return chunk

    @property
    def workers(self) -> int:
        """How many processes prepare batches: a CPU has no cores to spare, and of held pictures there is nothing to prepare."""
        if self.model.device.type != "cuda":
            return 0
        if self.pictures is not None and self.pictures.held is None:
            return usable_cpus()
        texts = any(not isinstance(column, np.ndarray) for source in self.sources for column in source.columns)
        return WORKERS if texts else 0

    def _chunks(self, columns: list[Column], prompts: tuple[str | None, str | None]) -> tuple[list[Features], Ints]:
        """The columns' items in chunks, texts first, and the order (items,) in which they stand there."""
        places = np.split(np.arange(sum(map(len, columns))), np.cumsum([len(column) for column in columns])[:-1])
        kinds = [isinstance(column, np.ndarray) for column in columns]
        texts = [(list(c), prompts[min(at, 1)]) for at, c in enumerate(columns) if not kinds[at] and len(c)]
        rows = [c for c in columns if isinstance(c, np.ndarray) and len(c)]
        found: list[tuple[list[Features], list[Ints]]] = []
        for is_picture, (chunks, cuts) in ((False, self._of_texts(texts)), (True, self._of_pictures(rows))):
            here = [place for place, kind in zip(places, kinds, strict=True) if kind == is_picture]
            if here:
                where = np.concatenate(here)
                found.append((chunks, [where[cut] for cut in cuts]))
        order = np.argsort(np.concatenate([cut for _, cuts in found for cut in cuts]))
        return [chunk for chunks, _ in found for chunk in chunks], order

    def _of_pictures(self, columns: list[Rows]) -> tuple[list[Features], list[Ints]]:
        if not columns:
            return [], []
        assert self.pictures is not None
        rows = np.concatenate(columns)
        ends = np.cumsum([len(column) for column in columns]) if self.apart else np.array([len(rows)])
        parts = [np.arange(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        cuts = [
            part[at : at + (self.most or len(part))]
            for part in parts
            for at in range(0, len(part), self.most or len(part))
        ]
        return [self.pictures.features(rows[cut]) for cut in cuts], cuts

    def _of_texts(self, told: list[tuple[list[str], str | None]]) -> tuple[list[Features], list[Ints]]:
        if not told:
            return [], []
        if self.settled is not None:
            rows = [self.settled.rows[text] for column, _ in told for text in column]
            return [{"sentence_embedding": self.settled.vectors[rows]}], [np.arange(len(rows))]
        if not tokenises_apart(self.model):
            starts = np.cumsum([0, *(len(column) for column, _ in told)])
            whole = [self.model.preprocess(column, prompt=prompt) for column, prompt in told]
            return whole, [np.arange(start, end) for start, end in itertools.pairwise(starts)]
        tokenizer = reader(self.model, "text").tokenizer
        columns = [tokenise(self.model, column, prompt) for column, prompt in told]
        chunks: list[Features] = []
        cuts: list[Ints] = []
        start = 0
        for tokens in self._together(columns):
            parts = self._cut(tokens.lengths)
            chunks += [pad(tokens, part, tokenizer) for part in parts]
            cuts += [start + part for part in parts]
            start += len(tokens.lengths)
        return chunks, cuts

    def _together(self, columns: list[Tokens]) -> list[Tokens]:
        """Columns whose texts may share a chunk as one: all, unless the encoder leaves prompts out of its pooling; then only those
        with prompts of one length, of which a chunk can tell it one."""
        apart = any(not getattr(module, "include_prompt", True) for module in self.model.modules())
        groups = itertools.groupby(columns, lambda column: column.rest.get("prompt_length") if apart else None)
        return [joined(list(group)) for _, group in groups]

    def _cut(self, lengths: Ints) -> list[Ints]:
        """The texts of a batch in chunks, longest first."""
        if self.most is not None:
            longest_first = np.argsort(-lengths, kind="stable")
            return [longest_first[start : start + self.most] for start in range(0, len(lengths), self.most)]
        return batches_by_length(lengths, *(CPU_TOKENS if self.model.device.type == "cpu" else GPU_TOKENS))


def joined(columns: list[Tokens]) -> Tokens:
    """The columns' texts one after the other."""
    return Tokens(
        np.concatenate([column.lengths for column in columns]),
        {name: np.concatenate([column.by_token[name] for column in columns]) for name in columns[0].by_token},
        columns[0].rest,
    )


def codes_of(column: Column, pictures: Pictures | None) -> Rows:
    """(n,) equal for equal items of a column."""
    if not isinstance(column, np.ndarray):
        return text_codes(column)
    assert pictures is not None
    return pictures.codes[column]


def _taken(column: Column, rows: Rows) -> Column:
    return column[rows] if isinstance(column, np.ndarray) else taken(column, rows)


def _is_there(item: Any) -> bool:
    """Whether a cell holds a text, or a row of a picture."""
    return bool(item) if isinstance(item, str) else item != MISSING


def _there(column: Column) -> Column:
    return column[column != MISSING] if isinstance(column, np.ndarray) else [text for text in column if text]


class Share(NamedTuple):
    """One process's part of a batch: of which source, its pairs, (2, B) identities of their texts, and by the code of a text its
    identity, where that is another than the code."""

    source: int
    pairs: Pairs
    items: Rows
    known: dict[int, int]


class Shares:
    """`count` batches for a DataLoader, of each one process's share; a batch is of one source, drawn by the sources' weights.

    Pairs that share a text, such as a question with two answers, are no negatives of each other either: all their texts have one
    identity. Every process draws the whole batch, so that all agree on that. pictures: where explicit negatives may be some.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        count: int,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
        pictures: Pictures | None = None,
    ) -> None:
        self.sources, self.count, self.seed, self.pictures = sources, count, seed, pictures
        self.rank, self.processes = rank, processes

    def __iter__(self) -> Iterator[Share]:
        random = np.random.default_rng([self.seed, 3])
        weights = np.array([source.weight for source in self.sources])
        drawn = [source.plan.batches() for source in self.sources]
        for _ in range(self.count):
            which = int(random.choice(len(drawn), p=weights / weights.sum())) if len(drawn) > 1 else 0
            yield self._share(which, next(drawn[which]))

    def _share(self, which: int, whole: Pairs) -> Share:
        source = self.sources[which]
        codes = np.stack([source.codes[0][whole.anchors], source.codes[1][whole.positives]])
        items, known = codes, dict[int, int]()
        if source.plan.labels is None:
            columns = [_there(_taken(column, whole.anchors)) for column in source.columns[2:]]
            negatives = [codes_of(column, self.pictures) for column in columns]
            items, known = identities(codes, np.concatenate([*negatives, codes[0, :0]]), source.related)
        mine = np.array_split(np.arange(len(whole.anchors)), self.processes)[self.rank]
        return Share(which, Pairs(whole.anchors[mine], whole.positives[mine]), items[:, mine], known)

    def __len__(self) -> int:
        return self.count


class _Shares(Dataset[Share]):
    """Shares stand for themselves; the collator looks up what they hold."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, share: Share) -> Share:
        return share


def _one_thread(_: int) -> None:
    """The tokenizer's threads do not live on in a process that was forked from theirs: it would wait for them forever."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def loader(collator: Collator, shares: Shares) -> "DataLoader[Any]":
    """The batches of one process. Draws nothing from torch's random numbers, so that a resumed training goes on with the same."""
    on_gpu = collator.model.device.type == "cuda"
    return DataLoader(
        _Shares(sum(len(source.columns[0]) for source in collator.sources)),
        batch_sampler=shares,  # type: ignore[arg-type]
        collate_fn=collator,  # type: ignore[arg-type]
        num_workers=collator.workers,
        worker_init_fn=_one_thread,
        pin_memory=on_gpu,
        generator=torch.Generator(),
    )
