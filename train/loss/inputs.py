"""What a loss is given: which shapes go together, and what it cannot do without."""

from torch import Tensor

from retrieval.errors import UserError

from .config import LossConfig


def refuse_unfit(config: LossConfig, given: dict[str, Tensor | None]) -> None:
    """Raises UserError for what is no tensor, has another shape than `contrastive_loss` says, or is missing.

    given: the call's tensors by name; "anchor" and "positive" are always there."""
    refuse_other_config(config)
    there = {name: x for name, x in given.items() if x is not None}
    for name, x in there.items():
        if not isinstance(x, Tensor):
            raise UserError(f"{name}: is of type {type(x).__name__}; give a tensor")
    _refuse_shapes(there)
    _refuse_missing(config, there)


def refuse_other_config(config: object) -> None:
    if not isinstance(config, LossConfig):
        raise UserError(f"config {config!r}: is no LossConfig; `named` makes one of a name, `loss` the whole loss")


def _refuse_shapes(given: dict[str, Tensor]) -> None:
    anchor, positive, negative = given["anchor"], given["positive"], given.get("negative")
    if anchor.ndim != 2 or positive.ndim not in (2, 3) or anchor.shape != positive.shape[-2:]:
        raise UserError(
            f"anchor {tuple(anchor.shape)}, positive {tuple(positive.shape)}: give a positive for each anchor, (B, d) or (M, B, d)"
        )
    if not len(anchor):
        raise UserError("anchor: an empty batch has no loss; leave it out")
    for name in ("anchor", "positive", "negative"):
        if name in given and not given[name].is_floating_point():
            raise UserError(f"{name}: embeddings are floating-point numbers, not {given[name].dtype}")
    pairs, dim = anchor.shape
    views = 2 if positive.ndim == 2 else 1 + len(positive)
    negatives = 0 if negative is None else len(negative)
    expected = {
        "negative": (negatives, dim),
        "labels": (pairs,),
        "items": (views * pairs,),
        "guide": (views, pairs, None),
        "guide_negative": (negatives, None),
        "negative_items": (negatives,),
        "negative_pairs": (negatives,),
    }
    for name, shape in expected.items():
        found = tuple(given[name].shape) if name in given else None
        if found is not None and (
            len(found) != len(shape) or any(w not in (None, n) for n, w in zip(found, shape, strict=True))
        ):
            wanted = ", ".join("g" if size is None else str(size) for size in shape) + "," * (len(shape) == 1)
            raise UserError(
                f"{name} {found}: give ({wanted}) for {pairs} pairs, {views} views and {negatives} negatives"
            )


def _refuse_missing(config: LossConfig, given: dict[str, Tensor]) -> None:
    labels = given.get("labels")
    if config.needs_labels and labels is None:
        raise UserError(
            f"--loss {config.name}: needs labels, and there are none; give a column label, or use --loss hcl"
        )
    lacks = "negative" in given and "guide_negative" not in given
    if config.guided and ("guide" not in given or lacks):
        of = " of the negatives too" if "guide" in given else ""
        raise UserError(
            f"--loss {config.name}: needs a guide encoder's embeddings{of}; use --loss positive-aware without one"
        )
    if labels is not None and config.label_mask and config.tau_plus:
        raise UserError(
            f"--tau-plus {config.tau_plus}: the label mask already removes same-class negatives; add --no-label-mask"
        )
