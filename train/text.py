"""Fine-tuning text encoders: the whole encoder, a part of it, or a linear head over a frozen one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Unpack

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from retrieval.data import Texts, text_codes
from retrieval.encode import Encoding, Floats
from retrieval.errors import UserError
from retrieval.tokens import ROLES, Ints, prompt_of, tokenise, tokenises_apart

from .batches import MISSING, Plan, Rows, as_codes
from .collate import Collator, Source
from .curve import Curve
from .fit import Running, fit, fit_head
from .head import Frozen, freeze
from .loss import LossConfig
from .matryoshka import check_dims
from .near import near_rows
from .settings import Settings, refuse_mistaken

TOKENISED = 8192  # texts at a time
Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class TextConfig(Settings):
    """How to train on texts. prompt, query_prompt, document_prompt: before every text, anchors, or the others."""

    prompt: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None

    @property
    def whole_rate(self) -> float:
        return 2e-5

    def encoded_first(self, data: Any, model: SentenceTransformer) -> int:
        """For a head all texts of a row."""
        return super().encoded_first(data, model) + (len(data) * (len(data.columns) - 1) if self.head else 0)


def train_text(
    model: SentenceTransformer,
    data: Texts | Sequence[Texts],
    config: TextConfig,
    loss_config: LossConfig,
    *,
    source: str,
    plans: Sequence[Plan] | None = None,
    weights: Sequence[float] | None = None,
    guide: SentenceTransformer | None = None,
    encoded: Progress = lambda texts: None,
    **running: Unpack[Running],
) -> Curve:
    """Train `model` in place and return its curve. `encoded` is told how many texts more are encoded.

    data: one data set or several, whose batches take turns at random by `weights`, by default as their numbers of steps in an epoch.
    plans: the batches of each, if they are decided. guide: the encoder by which a guided loss (GISTEmbed's) tells false negatives;
    the vectors that it makes of all texts are held in memory. running: as in `fit` and `fit_head`.
    """
    several = [data] if isinstance(data, Texts) else list(data)
    refuse_mistaken(model, loss_config)
    if loss_config.guided != (guide is not None):
        raise UserError(
            f"--loss {loss_config.name}: judges by another encoder; give --guide"
            if guide is None
            else f"--guide: --loss {loss_config.name} does not judge by one; leave it out, or use --loss gist"
        )
    check_dims(config.dims, model.get_embedding_dimension() or 0, loss_config)
    plans = plans or [plan_batches(each, config, loss_config, source, model, encoded) for each in several]
    guides = [None if guide is None else _frozen(guide, each, encoded) for each in several]
    torch.manual_seed(config.seed)
    if config.head:
        if len(several) > 1:
            raise UserError("--head: is trained on one data set; give one, or leave --head out")
        set_prompts(model, config, several[0].is_pairs)
        return fit_head(model, _frozen(model, several[0], encoded), plans[0], config, loss_config, guides[0], **running)
    collator = Collator(model, _sources(model, several, plans, weights, config, guides), config.mini_batch_size)
    return fit(model, collator, config, loss_config, **running)


def _sources(
    model: SentenceTransformer,
    several: Sequence[Texts],
    plans: Sequence[Plan],
    weights: Sequence[float] | None,
    config: TextConfig,
    guides: Sequence[Frozen | None] | None = None,
) -> list[Source]:
    found: list[Source] = []
    classes = 0
    weights = weights or [plan.per_epoch for plan in plans]
    guides = guides or [None] * len(several)
    for data, plan, weight, guide in zip(several, plans, weights, guides, strict=True):
        prompts = set_prompts(model, config, data.is_pairs)
        found.append(Source(columns_of(data), prompts, identities(data), plan, weight, classes, guide))
        classes += 0 if plan.labels is None else int(plan.labels.max()) + 1
    return found


def plan_batches(
    data: Texts,
    config: TextConfig,
    loss_config: LossConfig,
    source: str,
    model: SentenceTransformer | None = None,
    encoded: Progress = lambda texts: None,
) -> Plan:
    """Decide the batches. Raises UserError for data, or settings, from which this way of training cannot make pairs.

    model: needed to draw the batches where they depend on neighbours or lengths in tokens, not to check; for hard batches it
    encodes now.
    """
    labels = None if data.is_pairs else data.labels
    _refuse_settings(data, config, source)
    return config.plan(
        len(data),
        labels,
        source,
        loss_config,
        identities=lambda: _all_identities(data),
        lengths=None if model is None else cache(lambda: lengths(model, data, config)),
        near=None if model is None else lambda: near(model, data, config, encoded),
    )


def _refuse_settings(data: Texts, config: TextConfig, source: str) -> None:
    if not len(data):
        raise UserError(f"{source}: has no rows; give some")
    if not {"text", "anchor"} & data.columns.keys():
        raise UserError(f"{source}: has columns {', '.join(data.columns)}; call one text, or two anchor and positive")
    if data.is_pairs and "positive" not in data.columns:
        raise UserError(f"{source}: has anchors and no positives; name the column of those by --positive")
    if config.head and not data.is_pairs and data.labels is None:
        raise UserError(
            f"{source}: has neither labels nor pairs, and a frozen encoder makes two views of a text equal; name the column of classes "
            f"by --label, or leave --head out"
        )
    config.refuse_contradictions()
    by_role = config.query_prompt is not None or config.document_prompt is not None
    if not data.is_pairs and by_role:
        raise UserError(f"--query-prompt, --document-prompt: are for pairs, and {source} has none; use --prompt")
    if config.prompt is not None and by_role:
        raise UserError("--prompt: is for texts of one kind, --query-prompt and --document-prompt for two; choose")


def columns_of(data: Texts) -> list[Sequence[str]]:
    """Anchors, positives and negatives; of texts alone, all of them as anchors and as positives."""
    return list(data.columns.values()) if data.is_pairs else [data.texts, data.texts]


def identities(data: Texts) -> Rows:
    """(2, n) identity of each row's text on the anchors' and on the positives' side: equal texts are not negatives."""
    codes = list(data.codes.values())
    return np.stack(codes[:2] if data.is_pairs else codes[:1] * 2)


def _all_identities(data: Texts) -> Rows:
    """(c, n) likewise of all texts of a row, MISSING where it lacks one."""
    return np.stack([np.where(codes == text_codes([""]), MISSING, codes) for codes in data.codes.values()])


def set_prompts(model: SentenceTransformer, config: TextConfig, pairs: bool) -> tuple[str | None, str | None]:
    """What stands before anchors and before other texts; the encoder keeps what was asked for, and encodes with it from now on."""
    asked = {"text": config.prompt, "query": config.query_prompt, "document": config.document_prompt}
    # An empty prompt is none, not the encoder's default, which is the other role's own from now on.
    if config.prompt is None and "" in asked.values():
        asked = {role: prompt_of(model, role) if prompt is None else prompt for role, prompt in asked.items()}
        model.default_prompt_name = None
    for role, own in asked.items():
        prompt = config.prompt if own is None else own
        if prompt is not None:  # in place of every prompt that the encoder has for that role
            model.prompts |= {name: prompt for name in ROLES.get(role, ()) if name in model.prompts} | {role: prompt}
    if config.prompt is not None:
        model.default_prompt_name = "text"
    others = prompt_of(model, "document")  # which texts that stand alone are too, as `embed` takes them
    return prompt_of(model, "query") if pairs else others, others


def lengths(model: SentenceTransformer, data: Texts, config: TextConfig) -> Ints:
    """(c, n) tokens of each text of a row, with the prompts of training, 0 where it lacks one. The partner of a row of a class, who
    is not drawn yet, counts as long as the row."""
    if not tokenises_apart(model):
        raise UserError(
            "--batch-tokens: this encoder's texts cannot be measured before they are batched; use --batch-size"
        )

    def of(column: Sequence[str], prompt: str | None) -> Ints:
        parts = [list(column[start : start + TOKENISED]) for start in range(0, len(column), TOKENISED)]
        found = np.concatenate([tokenise(model, part, prompt).lengths for part in parts])
        return np.where([bool(text) for text in column], found, 0)

    query, other = set_prompts(model, config, data.is_pairs)
    anchors, *others = data.columns.values()
    counted = [of(anchors, query), *(of(column, other) for column in others)]
    return np.stack(counted if data.is_pairs else counted * 2)


def near(model: SentenceTransformer, data: Texts, config: TextConfig, encoded: Progress) -> Rows:
    """As `near_rows`, of the anchors, or of the classes of texts that stand alone, with the prompts of training."""
    set_prompts(model, config, data.is_pairs)
    vectors = Encoding(model, role="query" if data.is_pairs else "document").encode(data.texts, encoded)
    alone = data.labels is not None and not data.is_pairs
    return near_rows(vectors, as_codes(data.labels or ()) if alone else None)


def _frozen(model: SentenceTransformer, data: Texts, encoded: Progress) -> Frozen:
    def encode(texts: list[str], role: str) -> Floats:
        return Encoding(model, role=role).encode(texts, encoded)

    return freeze(model, list(data.columns.values()), encode, encoded)
