"""Rows of training data as an encoder reads them: tokenised, texts of one length together, so that little is padding."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch.utils.data import DataLoader, Dataset

from retrieval.data import linked, text_codes
from retrieval.data.texts import taken
from retrieval.encode import (
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

from .batches import Pairs, Plan, Rows

Batch = dict[str, Any]
WORKERS = 2  # processes that tokenise while a GPU runs; a CPU has no cores to spare


@dataclass(frozen=True)
class Source:
    """A data set that is trained on: texts by row of anchors, positives, negatives…, of which a row may lack some (""); what stands
    before anchors and before the others; (2, n) codes of the anchors' and the positives' texts; its batches, and the share of all
    batches that are its.

    first_class: what its classes count from, so that no two data sets share one.
    """

    columns: Sequence[Sequence[str]]
    prompts: tuple[str | None, str | None]
    codes: Rows
    plan: Plan
    weight: float = 1.0
    first_class: int = 0


@dataclass(frozen=True)
class Collator:
    """A process's share of a batch → {"chunks": features of some of its texts each, "batch": what the loss is told of them}.

    A chunk has at most `most` texts, where that is given.
    batch: order (texts,), where in the chunks, one after the other, each column's texts stand, column after column; items, classes;
    negative_items and negative_pairs where there are negatives: all as `contrastive_loss` has them.
    """

    model: SentenceTransformer
    sources: Sequence[Source]
    most: int | None = None

    def __call__(self, share: "Share") -> Batch:
        (anchors, positives), items, known = share.pairs, share.items, share.known
        source = self.sources[share.source]
        negatives = [taken(column, anchors) for column in source.columns[2:]]
        texts = [taken(source.columns[0], anchors), taken(source.columns[1], positives)]
        texts += [[text for text in column if text] for column in negatives]
        chunks, order = self._chunks(texts, source.prompts)
        batch = {"order": order, "items": items.flatten()}
        if source.plan.labels is not None:
            batch["classes"] = source.plan.labels[anchors] + source.first_class
        if negatives:
            own = [pair for column in negatives for pair, text in enumerate(column) if text]
            codes = text_codes(text for column in texts[2:] for text in column)
            batch["negative_items"] = np.array([known.get(code, code) for code in codes.tolist()], np.int64)
            batch["negative_pairs"] = np.array(own, np.int64)
        return {"chunks": chunks, "batch": {name: torch.from_numpy(value) for name, value in batch.items()}}

    def _chunks(self, texts: list[list[str]], prompts: tuple[str | None, str | None]) -> tuple[list[Features], Ints]:
        told = [(column, prompts[min(at, 1)]) for at, column in enumerate(texts) if column]
        if not tokenises_apart(self.model):
            whole = [self.model.preprocess(column, prompt=prompt) for column, prompt in told]
            return whole, np.arange(sum(map(len, texts)))
        return self._by_length([tokenise(self.model, column, prompt) for column, prompt in told])

    def _by_length(self, columns: list[Tokens]) -> tuple[list[Features], Ints]:
        tokens = Tokens(
            np.concatenate([column.lengths for column in columns]),
            {name: np.concatenate([column.by_token[name] for column in columns]) for name in columns[0].by_token},
            columns[0].rest,
        )
        cut = self._cut(tokens.lengths)
        order = np.argsort(np.concatenate(cut))
        return [pad(tokens, part, self.model.tokenizer) for part in cut], order

    def _cut(self, lengths: Ints) -> list[Ints]:
        """The texts of a batch in chunks, longest first."""
        if self.most is not None:
            longest_first = np.argsort(-lengths, kind="stable")
            return [longest_first[start : start + self.most] for start in range(0, len(lengths), self.most)]
        return batches_by_length(lengths, *(CPU_TOKENS if self.model.device.type == "cpu" else GPU_TOKENS))


class Share(NamedTuple):
    """One process's part of a batch: of which source, its pairs, (2, B) identities of their texts, and by the code of each text of the
    whole batch its identity."""

    source: int
    pairs: Pairs
    items: Rows
    known: dict[int, int]


class Shares:
    """`count` batches for a DataLoader, of each one process's share; a batch is of one source, drawn by the sources' weights.

    Pairs that share a text, such as a question with two answers, are no negatives of each other either: all their texts have one
    identity. Every process draws the whole batch, so that all agree on that.
    """

    def __init__(self, sources: Sequence[Source], count: int, seed: int = 0, rank: int = 0, processes: int = 1) -> None:
        self.sources, self.count, self.seed = sources, count, seed
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
        items = np.stack([linked(*codes)] * 2) if source.plan.labels is None else codes
        mine = np.array_split(np.arange(len(whole.anchors)), self.processes)[self.rank]
        known = dict(zip(codes.flatten().tolist(), items.flatten().tolist(), strict=True))
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
        num_workers=WORKERS if on_gpu else 0,
        worker_init_fn=_one_thread,
        pin_memory=on_gpu,
        generator=torch.Generator(),
    )
