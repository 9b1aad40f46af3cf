"""How much of an encoder learns: all of it, its last layers, or low-rank additions (LoRA, Hu et al., ICLR 2022); and how fast each layer does."""

import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from retrieval.errors import UserError


def layers(model: SentenceTransformer) -> tuple[str, int]:
    """The name of the list of a transformer's layers within the model, and how many there are. Raises UserError if there is none."""
    module: Any = model[0]
    count = getattr(getattr(module, "config", None), "num_hidden_layers", None)
    for name, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == count:
            return name, len(part)
    raise UserError(
        f"{type(module).__name__}: has no list of layers that is known here; leave out --last-layers and --layer-decay"
    )


def by_depth(model: SentenceTransformer) -> Iterator[tuple[str, nn.Parameter, int]]:
    """Every parameter with its depth: 0 for what comes before the first layer (embeddings), 1 … n for layer 1 … n, n + 1 beyond."""
    name, count = layers(model)
    depth = 0
    for key, parameter in model.named_parameters():
        if key.startswith(f"{name}."):
            depth = int(key[len(name) + 1 :].split(".")[0]) + 1
        elif depth:
            depth = count + 1
        yield key, parameter, depth


def train_last_layers(model: SentenceTransformer, last: int) -> None:
    """Freeze all but the last layers, and what comes after them."""
    _, count = layers(model)
    if last > count:
        raise UserError(f"--last-layers {last}: the encoder has {count}; give fewer, or leave it out")
    for _, parameter, depth in by_depth(model):
        parameter.requires_grad_(depth > count - last)


def learning_rates(model: SentenceTransformer, top: float, decay: float) -> dict[str, float]:
    """Learning rates by layer, for sentence-transformers' `learning_rate_mapping`: `top` for the last, each below `decay` times that."""
    _, count = layers(model)
    names: dict[int, list[str]] = {}
    for key, _, depth in by_depth(model):
        names.setdefault(min(depth, count), []).append(re.escape(key))
    return {rf"^model\.(?:{'|'.join(keys)})$": top * decay ** (count - depth) for depth, keys in names.items()}


def add_lora(model: SentenceTransformer, rank: int) -> None:
    """Freeze the encoder and give each of its linear layers a low-rank addition, which starts at zero; scaled by 2, α = 2 · rank."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("--lora: needs peft; pip install 'retrieval-toolkit[lora]'") from None
    module: Any = model[0]
    if not any(isinstance(part, nn.Linear | Conv1D) for part in module.modules()):
        kind = type(getattr(module, "model", module)).__name__
        raise UserError(
            f"--lora: adds to linear layers, of which {kind} has none; leave it out, or choose another encoder"
        )
    try:
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", bias="none")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of peft's about transformers
            module.model = get_peft_model(module.model, config)
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"--lora: peft cannot adapt {type(module).__name__} ({str(error)[:120]}); leave it out"
        ) from None


def merge_lora(model: SentenceTransformer) -> None:
    """Add the low-rank matrices to the weights: a plain encoder again, which needs no peft."""
    module: Any = model[0]
    module.model = module.model.merge_and_unload()


def interpolate(model: SentenceTransformer, old: dict[str, Tensor], share: float) -> None:
    """Make every weight (1 − share) · old + share · trained, in place (WiSE-FT, Wortsman et al., CVPR 2022).

    A head that was added is taken to have been the identity.
    """
    done: set[int] = set()  # weights that stand under two names
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if not value.is_floating_point() or value.data_ptr() in done:
                continue
            done.add(value.data_ptr())
            before = old.get(key)
            if before is None:
                before = torch.eye(*value.shape, device=value.device) if value.ndim == 2 else torch.zeros_like(value)
            value.lerp_(before.to(value), 1 - share)
