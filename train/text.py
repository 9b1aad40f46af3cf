"""Fine-tuning text encoders: the whole encoder, a part of it, or a linear head over a frozen one."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from retrieval.data import Texts
from retrieval.encode import Encoding, Floats, Ints, prompt_of, tokenise, tokenises_apart
from retrieval.errors import UserError
from retrieval.neighbors import exact_neighbors

from . import adapt
from . import head as frozen
from .batches import Drawing, Plan, Rows, as_codes
from .batches import plan as plan_pairs
from .collate import Collator, Source
from .curve import Curve
from .loss import LossConfig
from .matryoshka import check_dims
from .sentence_loss import SentenceLoss
from .whole import Optimisation, Watch, train_whole

WHOLE_LEARNING_RATE = 2e-5
LORA_LEARNING_RATE = 2e-4
NEAR = 64  # neighbours of each row that hard batches are made of
TOKENISED = 8192  # texts at a time
Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How to train. batch_size counts pairs; one of steps and epochs is set, and epochs make as many steps as `step_bounds` allow, at
    least and at most; lr None takes the way's own default.

    head, last_layers, lora (a rank): what learns, all if none is set. mini_batch_size: how many texts are in the encoder at a
    time (GradCache), for batches larger than memory would hold. accumulate: batches a step. dims: Matryoshka dimensions besides
    all. drawing: which rows stand together. prompt, query_prompt, document_prompt: before every text, anchors, or the others.
    """

    head: bool = False
    last_layers: int | None = None
    lora: int | None = None
    steps: int | None = None
    epochs: float = 1.0
    step_bounds: tuple[int, int | None] = (1, None)
    batch_size: int | None = None
    mini_batch_size: int | None = None
    accumulate: int = 1
    drawing: Drawing = Drawing()
    lr: float | None = None
    schedule: str = "linear"
    warmup: float = 0.1
    layer_decay: float = 1.0
    dims: tuple[int, ...] = ()
    compute: str = "float32"
    compiled: bool = False
    prompt: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    seed: int = 0


def train_text(
    model: SentenceTransformer,
    data: Texts | Sequence[Texts],
    config: TextConfig,
    loss_config: LossConfig,
    *,
    source: str,
    plans: Sequence[Plan] | None = None,
    weights: Sequence[float] | None = None,
    encoded: Progress = lambda texts: None,
    progress: Callable[[Curve], None] = lambda curve: None,
    scratch: Path | None = None,
    watch: Watch | None = None,
    report_to: str = "none",
) -> Curve:
    """Train `model` in place and return its curve. `encoded` and `progress` are told texts encoded and steps done.

    data: one data set or several, whose batches take turns at random by `weights`, by default as their numbers of batches.
    plans: the batches of each, if they are decided. scratch, watch, report_to: as in `train_whole`; a head needs none of them.
    """
    several = [data] if isinstance(data, Texts) else list(data)
    check_dims(config.dims, model.get_embedding_dimension() or 0, loss_config)
    plans = plans or [plan_batches(each, config, loss_config, source, model, encoded) for each in several]
    torch.manual_seed(config.seed)
    if config.head:
        if len(several) > 1:
            raise UserError("--head: is trained on one data set; give one, or leave --head out")
        set_prompts(model, config, several[0].is_pairs)
        return _train_head(model, several[0], plans[0], config, loss_config, encoded, progress)
    steps = total_steps(plans, config)
    sources = _sources(model, several, plans, weights, config)
    _choose_what_learns(model, config)
    loss = SentenceLoss(
        model,
        loss_config,
        steps * config.accumulate,
        dims=config.dims,
        cached=config.mini_batch_size is not None,
        progress=progress,
    )
    with tempfile.TemporaryDirectory() as passing:
        curve = train_whole(
            model,
            Collator(model, sources, config.mini_batch_size),
            loss,
            _optimisation(config, steps),
            scratch or Path(passing),
            watch=watch,
            report_to=report_to,
        )
    if config.lora:
        adapt.merge_lora(model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return curve


def total_steps(plans: Sequence[Plan], config: TextConfig) -> int:
    """As many as asked, or as the epochs of all data sets take, within the bounds."""
    least, most = config.step_bounds
    found = max(least, sum(plan.steps for plan in plans))
    return config.steps or (found if most is None else min(found, most))


def _sources(
    model: SentenceTransformer,
    several: Sequence[Texts],
    plans: Sequence[Plan],
    weights: Sequence[float] | None,
    config: TextConfig,
) -> list[Source]:
    found: list[Source] = []
    classes = 0
    per_epoch = [len(data) / plan.pairs for data, plan in zip(several, plans, strict=True)]
    for data, plan, weight in zip(several, plans, weights or per_epoch, strict=True):
        prompts = set_prompts(model, config, data.is_pairs)
        found.append(Source(columns_of(data), prompts, identities(data), plan, weight, classes))
        classes += 0 if plan.labels is None else int(plan.labels.max()) + 1
    return found


def _optimisation(config: TextConfig, steps: int) -> Optimisation:
    return Optimisation(
        steps=steps,
        accumulate=config.accumulate,
        lr=learning_rate(config),
        schedule=config.schedule,
        warmup=config.warmup,
        layer_decay=config.layer_decay,
        compute=config.compute,
        compiled=config.compiled,
        seed=config.seed,
    )


def used(plans: Sequence[Plan], config: TextConfig) -> dict[str, object]:
    """What the settings left open came out as; the batch size that of the first data set."""
    return {"steps": total_steps(plans, config), "batch_size": plans[0].pairs, "lr": learning_rate(config)}


def learning_rate(config: TextConfig) -> float:
    default = frozen.LEARNING_RATE if config.head else LORA_LEARNING_RATE if config.lora else WHOLE_LEARNING_RATE
    return config.lr or default


def plan_batches(
    data: Texts,
    config: TextConfig,
    loss_config: LossConfig,
    source: str,
    model: SentenceTransformer | None = None,
    encoded: Progress = lambda texts: None,
) -> Plan:
    """Decide the batches. Raises UserError for data, or settings, from which this way of training cannot make pairs.

    model: needed to draw the batches where they depend on neighbours or lengths in tokens, not to check.
    """
    labels = None if data.is_pairs else data.labels
    _refuse_settings(data, config, source)
    return plan_pairs(
        len(data),
        labels,
        source,
        masked=loss_config.label_mask,
        batch_size=config.batch_size,
        steps=config.steps,
        epochs=config.epochs,
        seed=config.seed,
        accumulate=config.accumulate,
        drawing=config.drawing,
        identities=lambda: identities(data),
        lengths=None if model is None else cache(lambda: lengths(model, data)),
        near=None if model is None else lambda: near(model, data, encoded),
    )


def _refuse_settings(data: Texts, config: TextConfig, source: str) -> None:
    if config.head and not data.is_pairs and data.labels is None:
        raise UserError(
            f"{source}: plain lines are trained on two dropout views, which a frozen encoder makes equal; leave --head out"
        )
    if sum(map(bool, (config.head, config.last_layers, config.lora))) > 1:
        raise UserError("--head, --last-layers, --lora: say in one way what learns, not in two")
    if config.lora and config.layer_decay != 1:
        raise UserError("--layer-decay: is not for --lora, whose additions all start at zero; leave it out")
    if config.head:
        plain = TextConfig(head=True)
        for name in ("mini_batch_size", "accumulate", "layer_decay", "compute", "compiled", "schedule", "warmup"):
            if getattr(config, name) != getattr(plain, name):
                flag = {"compiled": "compile"}.get(name, name.replace("_", "-"))
                raise UserError(f"--{flag}: is for training the encoder itself; leave it out, or leave --head out")
    if not data.is_pairs and (config.query_prompt or config.document_prompt):
        raise UserError(f"--query-prompt, --document-prompt: are for pairs, and {source} has none; use --prompt")
    if config.prompt and (config.query_prompt or config.document_prompt):
        raise UserError("--prompt: is for texts of one kind, --query-prompt and --document-prompt for two; choose")


def columns_of(data: Texts) -> list[Sequence[str]]:
    """Anchors, positives and negatives; of texts alone, all of them as anchors and as positives."""
    return list(data.columns.values()) if data.is_pairs else [data.texts, data.texts]


def identities(data: Texts) -> Rows:
    """(2, n) identity of each row's text on the anchors' and on the positives' side: equal texts are not negatives."""
    codes = list(data.codes.values())
    return np.stack(codes[:2] if data.is_pairs else codes[:1] * 2)


def set_prompts(model: SentenceTransformer, config: TextConfig, pairs: bool) -> tuple[str | None, str | None]:
    """What stands before anchors and before other texts; the encoder keeps what was asked for, and encodes with it from now on."""
    if config.prompt is not None:
        model.prompts["text"] = config.prompt
        model.default_prompt_name = "text"
    for name, prompt in (("query", config.query_prompt), ("document", config.document_prompt)):
        if prompt is not None:
            model.prompts[name] = prompt
    others = prompt_of(model, "document")  # which texts that stand alone are too, as `embed` takes them
    return prompt_of(model, "query") if pairs else others, others


def lengths(model: SentenceTransformer, data: Texts) -> Ints:
    """(n,) tokens of each row's longest text."""
    if not tokenises_apart(model):
        raise UserError(
            "--batch-tokens: this encoder's texts cannot be measured before they are batched; use --batch-size"
        )

    def of(column: Sequence[str]) -> Ints:
        parts = [column[start : start + TOKENISED] for start in range(0, len(column), TOKENISED)]
        return np.concatenate([tokenise(model, list(part), None).lengths for part in parts])

    return np.max([of(column) for column in data.columns.values()], axis=0)  # type: ignore[no-any-return]


def near(model: SentenceTransformer, data: Texts, encoded: Progress) -> Rows:
    """The rows whose anchors are nearest to each row's, (n, ≤ NEAR), or the classes nearest to each class, (c, c − 1)."""
    vectors = Encoding(model, role="query" if data.is_pairs else "document").encode(data.texts, encoded)
    if data.is_pairs or data.labels is None:
        rows = np.arange(len(vectors))
        return exact_neighbors(vectors, vectors, min(NEAR, len(rows) - 1), self_rows=rows).ids
    codes = as_codes(data.labels)
    sums = np.zeros((codes.max() + 1, vectors.shape[1]), np.float32)
    np.add.at(sums, codes, vectors)
    classes = np.arange(len(sums))
    return exact_neighbors(sums, sums, len(sums) - 1, metric="cosine", self_rows=classes).ids


def _choose_what_learns(model: SentenceTransformer, config: TextConfig) -> None:
    if config.last_layers:
        adapt.train_last_layers(model, config.last_layers)
    if config.lora:
        adapt.add_lora(model, config.lora)


def _train_head(
    model: SentenceTransformer,
    data: Texts,
    plan: Plan,
    config: TextConfig,
    loss_config: LossConfig,
    encoded: Progress,
    progress: Callable[[Curve], None],
) -> Curve:
    def encode(texts: list[str], role: str) -> Floats:
        return Encoding(model, role=role).encode(texts, encoded)

    head, curve = frozen.train_head(
        frozen.freeze(model, list(data.columns.values()), encode, encoded),
        plan.batches(),
        loss_config,
        labels=plan.labels,
        steps=total_steps([plan], config),
        lr=learning_rate(config),
        dims=config.dims,
        progress=progress,
    )
    frozen.append_head(model, head)
    return curve
