"""Texts as an encoder's tokenizer gives them: what stands before them, tokenised apart, batched by their length, padded."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.routes import reader

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Ints = NDArray[np.int64]
Features = dict[str, Any]
ROLES = {"query": ("query",), "document": ("document", "passage", "corpus")}  # prompts, the first that an encoder has
# Padded tokens of a batch at most, and how many make it large enough not to mix lengths. Measured in docs/log.md.
CPU_TOKENS = 2048, 512
GPU_TOKENS = 65_536, 16_384
LIBRARY_STEPS = [  # the modules of the methods by which texts are tokenised, where no encoder's class has its own
    "sentence_transformers.base.modules.transformer",
    "transformers.tokenization_utils_base",
    "transformers.tokenization_utils_tokenizers",
]


@dataclass(frozen=True)
class Tokens:
    """Texts as the tokenizer gives them, unpadded and one after the other; for `pad`.

    lengths: (n,) tokens of each text. by_token: features with a number for each token. rest: those that all texts share.
    """

    lengths: Ints
    by_token: dict[str, Ints]
    rest: Features


def prompt_of(model: "SentenceTransformer", role: str | None = None) -> str | None:
    """What the encoder puts before every text, or before queries or documents where it has prompts for those.

    sentence-transformers gives every encoder an empty prompt for "query" and for "document", so an empty one says nothing: one called
    "passage" counts beside it. A default that is the other role's is none of this one's."""
    named = next((model.prompts[name] for name in ROLES.get(role or "", ()) if model.prompts.get(name)), None)
    default = model.default_prompt_name or ""
    others = [name for other, names in ROLES.items() if role and other != role for name in names]
    return named or (None if default in others else model.prompts.get(default)) or None


def tokenises_apart(model: "SentenceTransformer") -> bool:
    """Whether the encoder's texts can be tokenised first and padded later, with the same result."""
    module = reader(model, "text")
    config = getattr(module, "modality_config", {})
    return (
        "text" in config
        and "message" not in config
        and getattr(module.tokenizer, "is_fast", False)
        and module.tokenizer.pad_token_id is not None
        and not module._can_flatten_inputs()
    )


def tokenise(model: "SentenceTransformer", texts: list[str], prompt: str | None) -> Tokens:
    """What sentence-transformers makes of the texts, unpadded. Needs `tokenises_apart`.

    It spends as long on Python's lists as a GPU on short texts, and keeps other threads from Python meanwhile. Where it only
    asks the Rust tokenizer it is given one text, which says what features there are and sets how texts are cut; the
    tokenizer's own threads do the rest.
    """
    apart = {"text": {"padding": False}, "common": {"return_tensors": None}}
    module = reader(model, "text")
    preprocess = partial(module.preprocess, prompt=prompt, processing_kwargs=apart)
    if not _asks_only_the_tokenizer(module):
        return as_tokens(preprocess(texts))
    first = as_tokens(preprocess(texts[:1]))
    backend: Any = module.tokenizer.backend_tokenizer
    encoded = backend.encode_batch_fast([prompt + text for text in texts] if prompt else texts)
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    count = int(lengths.sum())
    read: dict[str, Callable[[], Ints]] = {
        "input_ids": lambda: _flat((each.ids for each in encoded), count),
        "token_type_ids": lambda: _flat((each.type_ids for each in encoded), count),
        "attention_mask": lambda: np.ones(count, np.int64),
    }
    return Tokens(lengths, {name: read[name]() for name in first.by_token}, first.rest)


def _asks_only_the_tokenizer(module: Any) -> bool:
    """Whether all that preprocessing does to texts is a call of the Rust tokenizer: no other module's, processor's or
    tokenizer's way, and no settings of the call."""
    tokenizer: Any = type(module.tokenizer)
    steps = type(module).preprocess, tokenizer.__call__, tokenizer._encode_plus
    return (
        list(module.modality_config) == ["text"]
        and module.processor is module.tokenizer
        and not module.processing_kwargs
        and [step.__module__ for step in steps] == LIBRARY_STEPS
    )


def as_tokens(features: Any) -> Tokens:
    """The tokenizer's lists, unpadded, as arrays."""
    lists = {name: value for name, value in features.items() if isinstance(value, list)}
    lengths = np.array([len(ids) for ids in lists["input_ids"]], np.int64)
    by_token = {name: _flat(value, int(lengths.sum())) for name, value in lists.items()}
    return Tokens(lengths, by_token, {name: value for name, value in features.items() if name not in lists})


def _flat(rows: Iterable[list[int]], count: int) -> Ints:
    return np.fromiter(chain.from_iterable(rows), np.int64, count)


def lengths(model: "SentenceTransformer", texts: Sequence[str]) -> Ints:
    """(n,) how many tokens the encoder would read of each text if it read them all; characters over four where that is not known."""
    if not tokenises_apart(model):
        return np.array([len(text) // 4 + 1 for text in texts])
    backend = reader(model, "text").tokenizer.backend_tokenizer
    cut, filled = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        return np.array([len(each) for each in backend.encode_batch_fast(list(texts))])
    finally:
        if cut:
            backend.enable_truncation(**cut)
        if filled:
            backend.enable_padding(**filled)


def batches_by_length(lengths: Ints, most: int, enough: int) -> list[Ints]:
    """Items in batches, longest first, with at most `most` tokens with padding; one of `enough` tokens is closed where the
    length changes, so that most batches need no padding at all."""
    order = np.argsort(-lengths, kind="stable")
    sizes = lengths[order].tolist()
    batches, start = [], 0
    for stop in range(1, len(sizes) + 1):
        longest = sizes[start]
        if (
            stop == len(sizes)
            or (stop - start + 1) * longest > most
            or (sizes[stop] < longest and (stop - start) * longest >= enough)
        ):
            batches.append(order[start:stop])
            start = stop
    return batches


def pad(tokens: Tokens, batch: Ints, tokenizer: Any) -> Features:
    """Some texts' features as tensors (texts, longest), padded as the tokenizer would."""
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    lengths = tokens.lengths[batch, None]
    stops = np.cumsum(tokens.lengths)[batch, None]
    columns = np.arange(lengths.max())
    if tokenizer.padding_side == "left":
        columns = columns - len(columns) + lengths  # of each text: negative before it begins
    at, inside = stops - lengths + columns, (columns >= 0) & (columns < lengths)
    padded = {
        name: torch.from_numpy(np.where(inside, values.take(at, mode="clip"), fill.get(name, 0)))
        for name, values in tokens.by_token.items()
    }
    return padded | tokens.rest
