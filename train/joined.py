"""An encoder of images and one of texts joined into one: each takes its kind by sentence-transformers' own Router."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import nn

from retrieval.errors import UserError

SIDES = ("image", "text")


def join(
    image: SentenceTransformer, text: SentenceTransformer, dim: int | None = None, frozen: str | None = None
) -> SentenceTransformer:
    """image → its modules → Dense, text → its modules → Dense, both → Normalize: unit vectors of `dim` numbers.

    dim: by default that of the frozen side, else of the narrower one. A frozen side of that width has no layer of its own, so that
    its vectors stay as they are (LiT, Zhai et al., CVPR 2022).
    """
    if "image" not in image.modalities:
        raise UserError("--image-model: takes no images; choose an image encoder, or small, resnet18, resnet50")
    if "text" not in text.modalities:
        raise UserError("--text-model: takes no text; choose a text encoder")
    models = dict(zip(SIDES, (image, text), strict=True))
    widths = {side: model.get_embedding_dimension() or 0 for side, model in models.items()}
    dim = dim or (widths[frozen] if frozen else min(widths.values()))
    routes = {side: [each for each in model if not isinstance(each, Normalize)] for side, model in models.items()}
    for side in SIDES:
        if side != frozen:
            routes[side].append(Dense(widths[side], dim, bias=False, activation_function=nn.Identity()))
        elif widths[side] != dim:
            raise UserError(
                f"--dim {dim}: the frozen side's vectors have {widths[side]} numbers; give that, or leave it out"
            )
    router = Router(routes, default_route="text", route_mappings={(None, side): side for side in SIDES})  # type: ignore[arg-type]
    joined = SentenceTransformer(modules=[router, Normalize()], device=str(image.device))
    joined.prompts, joined.default_prompt_name = text.prompts, text.default_prompt_name
    return joined


def side_of(model: SentenceTransformer, side: str) -> list[nn.Module]:
    """The modules that one kind alone goes through. Raises UserError where both kinds share all."""
    first: Any = model[0]
    if isinstance(first, Router):
        route: Any = first.sub_modules[side]
        return list(route)
    inner = getattr(first, "model", None)
    names = {"image": ("vision_model", "visual_projection"), "text": ("text_model", "text_projection")}[side]
    found = [part for name in names if (part := getattr(inner, name, None)) is not None]
    if not found:
        raise UserError(f"--freeze {side}: this encoder has no part for {side} alone that is known here; leave it out")
    return found


def joining(model: SentenceTransformer) -> list[nn.Module]:
    """The layers by which `join` brought two encoders together."""
    first: Any = model[0]
    routes: list[Any] = list(first.sub_modules.values()) if isinstance(first, Router) else []
    return [route[-1] for route in routes if isinstance(route[-1], Dense) and route[-1].bias is False]


@contextmanager
def frozen(model: SentenceTransformer, side: str | None) -> Iterator[None]:
    """Keep one side of an encoder as it is while the other is trained: no gradients, no dropout, no new batch statistics."""

    def calm(module: nn.Module, _: object) -> None:
        module.eval()  # the trainer sets all to training at every step

    parts = side_of(model, side) if side else []
    for part in parts:
        part.requires_grad_(False)
    hooks = [part.register_forward_pre_hook(calm) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part in parts:
            part.requires_grad_(True)
