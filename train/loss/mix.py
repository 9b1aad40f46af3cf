"""Synthetic negatives, mixed from the hardest of each anchor."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .config import Mix


@dataclass(frozen=True)
class Recipe:
    """All that is random in a mix, drawn at once so that it does not depend on how anchors are cut into blocks or processes.

    first, second: (A, k) places among the hardest; share: (A, k) of the first, the last `with_anchor` of them of the anchor.
    """

    hardest: int
    with_anchor: int
    first: Tensor
    second: Tensor
    share: Tensor

    @classmethod
    def draw(cls, mix: Mix, anchors: int, candidates: int, seed: int, device: torch.device) -> "Recipe":
        random = torch.Generator(device).manual_seed(seed)
        hardest, made = min(mix.hardest, candidates), mix.pairs + mix.with_anchor
        first, second = torch.randint(hardest, (2, anchors, made), generator=random, device=device)
        share = torch.rand(anchors, made, generator=random, device=device)
        share[:, mix.pairs :] /= 2
        return cls(hardest, mix.with_anchor, first, second, share)

    def rows(self, at: slice | Tensor) -> "Recipe":
        return Recipe(self.hardest, self.with_anchor, self.first[at], self.second[at], self.share[at])


class Mixed(NamedTuple):
    """vectors: (r, k, d) unit and constant; cosines: (r, k) with their anchors."""

    vectors: Tensor
    cosines: Tensor


def mixed_negatives(z: Tensor, anchors: Tensor, candidates: Tensor, recipe: Recipe) -> Mixed:
    """Mix from the largest of z (r, C), −inf where a candidate is no negative. anchors: (r, d); candidates: (C, d).

    An anchor with fewer negatives than `hardest` mixes among those it has; one with none gets cosines of −inf.
    """
    best = z.topk(recipe.hardest, 1)
    there = (best.values > -torch.inf).sum(1, keepdim=True)

    def pick(place: Tensor) -> Tensor:
        return candidates[best.indices.gather(1, place % there.clamp(min=1))]

    one, other = pick(recipe.first), pick(recipe.second)
    if recipe.with_anchor:
        one = one.clone()
        one[:, -recipe.with_anchor :] = anchors[:, None]
    share = recipe.share[..., None].to(candidates.dtype)
    vectors = normalize(share * one + (1 - share) * other, dim=2)
    cosines = torch.einsum("rd,rkd->rk", anchors, vectors)
    return Mixed(vectors, cosines.masked_fill(there == 0, -torch.inf))
