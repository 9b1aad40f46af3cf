"""Training on pairs with pictures: pictures and their captions, or two pictures of one thing."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from retrieval.data import Texts
from retrieval.embed import encode_all
from retrieval.encoder import Encoder
from retrieval.errors import UserError
from retrieval.images import Images, Pairs
from retrieval.images.pairs import Column as Items
from retrieval.pixels import pixels_of
from retrieval.tokens import prompt_of

from .augment import PRESETS
from .batches import DEFAULT_PAIRS, Plan
from .captions import altered
from .collate import Collator, Column, Settled, Source, codes_of
from .curve import Curve
from .fit import Running, fit
from .joined import SIDES, frozen, joining, side_of
from .loss import LossConfig
from .near import near_rows
from .pictures import pictures_of
from .settings import Settings, refuse_mistaken
from .words import KINDS

ROLE = "query"  # of captions: what they are judged, and pictures are searched, by
SETTLED = 2**29  # numbers of vectors that are kept: 2 GiB
SCRATCH_RATE = 4e-3
LAYER_RATE = 1e-3


@dataclass(frozen=True, kw_only=True)
class PairConfig(Settings):
    """How to train on pairs. augment: as in `ImageConfig`, by default "clip", which leaves left and right where they are.

    apart, scratch: as in `ImageConfig`. freeze: "image" or "text", the side of an encoder that stays as it is. image_rate, text_rate: the
    sides' learning rates, where they differ from lr.
    """

    schedule: str = "cosine"
    augment: str = "clip"
    apart: bool = False
    scratch: bool = False
    freeze: str | None = None
    image_rate: float | None = None
    text_rate: float | None = None

    @property
    def whole_rate(self) -> float:
        return SCRATCH_RATE if self.scratch else 2e-5

    def encoded_first(self, data: Any, model: SentenceTransformer) -> int:
        """And texts that stay as they are."""
        return super().encoded_first(data, model) + len(settled_texts(model, data, self))

    def rates(self, model: SentenceTransformer) -> dict[str, float]:
        """Of a side its own; of the layers that join two encoders LAYER_RATE, since they begin at random."""
        given: dict[str, float] = dict(super().rates(model))
        for side, rate in zip(SIDES, (self.image_rate, self.text_rate), strict=True):
            given |= {pattern(model, side_of(model, side)): rate} if rate else {}
        layers = joining(model)
        return given | ({pattern(model, layers): LAYER_RATE} if layers else {})  # the last that fits a name counts


def pattern(model: SentenceTransformer, parts: Sequence[nn.Module]) -> str:
    """What the names of some modules' weights are found by, as sentence-transformers' `learning_rate_mapping` has them."""
    own = {id(parameter) for part in parts for parameter in part.parameters()}
    names = [re.escape(name) for name, parameter in model.named_parameters() if id(parameter) in own]
    return rf"^model\.(?:{'|'.join(names)})$"


def train_pairs(
    model: SentenceTransformer,
    data: Pairs,
    config: PairConfig,
    loss_config: LossConfig,
    *,
    source: str,
    plan: Plan | None = None,
    encoded: Callable[[int], None] = lambda items: None,
    **running: Unpack[Running],
) -> Curve:
    """Train `model` in place and return its curve. Arguments as in `train_image`."""
    refuse_mistaken(model, loss_config)
    refuse_kinds(model, data, source)
    plan = plan or plan_batches(data, config, loss_config, source, model, encoded)
    torch.manual_seed(config.seed)
    images, columns = _numbered(data)
    pictures = pictures_of(images, pixels_of(model), PRESETS[config.augment])
    prompt = prompt_of(model, ROLE)
    codes = np.stack([codes_of(column, pictures) for column in columns[:2]])
    sources = [Source(columns, (prompt, prompt), codes, plan)]
    texts = settled_texts(model, data, config)
    settled = Settled(texts, torch.from_numpy(_encoded(model, list(texts), encoded))) if texts else None
    collator = Collator(model, sources, config.mini_batch_size, pictures, config.apart, settled)
    with frozen(model, config.freeze):
        return fit(model, collator, config, loss_config, **running)


def settled_texts(model: SentenceTransformer, data: Pairs, config: PairConfig) -> dict[str, int]:
    """The different texts, numbered, if they are best encoded once: when no weight that they meet learns, and each comes up more
    than once. Else none."""
    columns = [column for column in data.columns.values() if not isinstance(column, Images)]
    pairs = min(config.batch_size or DEFAULT_PAIRS, len(data))
    seen = config.steps * config.accumulate * pairs if config.steps else config.epochs * len(data)
    if config.freeze != "text" or seen < len(data) or not _apart(model):
        return {}
    texts = dict.fromkeys(text for column in columns for text in column if text)
    few = len(texts) * (model.get_embedding_dimension() or 1) <= SETTLED
    return {text: row for row, text in enumerate(texts)} if few else {}


def _apart(model: SentenceTransformer) -> bool:
    """Whether every weight is of one kind of item alone, but for numbers such as a temperature."""
    own = {id(parameter) for side in SIDES for part in side_of(model, side) for parameter in part.parameters()}
    return all(id(parameter) in own or parameter.numel() == 1 for parameter in model.parameters())


def refuse_kinds(model: SentenceTransformer, data: Pairs, source: str) -> None:
    """Raises UserError for columns of a kind that the encoder does not take."""
    for name, column in data.columns.items():
        kind = "image" if isinstance(column, Images) else "text"
        if kind not in model.modalities:
            raise UserError(
                f"{source}: its column {name} is of {kind}s, which the encoder does not take; choose one that does, or join two by "
                f"--image-model and --text-model"
            )


def _numbered(data: Pairs) -> tuple[Images, list[Column]]:
    """Every picture once, and the columns: texts as they are, pictures as their numbers."""
    sides = [column for column in data.columns.values() if isinstance(column, Images)]
    number = {picture: row for row, picture in enumerate(dict.fromkeys(p for side in sides for p in side.source))}
    columns: list[Column] = [
        np.array([number[picture] for picture in column.source], np.int64) if isinstance(column, Images) else column
        for column in data.columns.values()
    ]
    return Images(list(number), None, data.origin), columns


def plan_batches(
    data: Pairs,
    config: PairConfig,
    loss_config: LossConfig,
    source: str,
    model: SentenceTransformer | None = None,
    encoded: Callable[[int], None] = lambda items: None,
) -> Plan:
    """model: needed to draw hard batches, not to check. Raises UserError for data, or settings, from which no batches can be made."""
    config.refuse_contradictions()
    if config.head:
        raise UserError("--head: is for texts and for labelled images; use --freeze image or --freeze text")
    if config.freeze and config.lora:
        raise UserError("--lora: adds to both sides, and --freeze leaves one as it is; choose one")
    if config.freeze and config.mini_batch_size:
        raise UserError("--mini-batch-size: caches gradients, of which a frozen side has none; leave one of them out")
    if config.drawing.tokens:
        raise UserError("--batch-tokens: is for texts; use --batch-size")
    if len(data) < 2:
        raise UserError(f"{source}: has one pair; give at least two")
    return config.plan(
        len(data),
        None,
        source,
        loss_config,
        identities=lambda: np.stack(list(data.identities.values())),
        near=None if model is None else lambda: near_rows(_encoded(model, data.columns["anchor"], encoded), None),
    )


def _encoded(model: SentenceTransformer, column: Items, encoded: Callable[[int], None]) -> Any:
    items = column if isinstance(column, Images) else Texts({"text": column})
    return encode_all(Encoder(model, ""), items, role=ROLE, progress=encoded)


def with_hard_captions(data: Pairs, hard: int, kinds: Sequence[str] = (), seed: int = 0) -> Pairs:
    """The pairs, with `hard` columns more of captions that say something else than their picture shows, changed in these kinds of
    words, or any.

    A caption that gives fewer leaves "". No changed caption is one that the picture has. Raises UserError for pairs without captions.
    """
    if not hard:
        return data
    captions = data.columns["positive"]
    if isinstance(captions, Images) or not isinstance(data.columns["anchor"], Images):
        raise UserError(
            "--hard-captions: need pictures as anchors and captions as positives; leave it out, or say which is which by --anchor and --positive"
        )
    shown = data.identities["anchor"].tolist()
    true: dict[int, set[str]] = {}
    for picture, caption in zip(shown, captions, strict=True):
        true.setdefault(picture, set()).add(caption)
    found = [
        [text for _, text in altered(caption, kinds=kinds or KINDS, count=hard, seed=seed, true=true[picture])]
        for picture, caption in zip(shown, captions, strict=True)
    ]
    there = len(data.columns) - 2
    more: dict[str, Items] = {
        f"negative_{there + at + 1}": [texts[at] if at < len(texts) else "" for texts in found] for at in range(hard)
    }
    return Pairs(data.columns | more, data.origin, data.ids)
