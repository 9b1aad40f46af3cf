"""New embeddings from stored ones: where an encoder is that of a store with a head on top, only the head has to run."""

from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import nn

from retrieval.artifact import sha256_json
from retrieval.encoder import Encoder, fingerprint
from retrieval.errors import UserError
from retrieval.store import Floats, Ids, Rows, Store, StoreRows


@dataclass(frozen=True)
class Headed(StoreRows):
    """A store's rows with their vectors sent through the head: a source of rows. `mark` names the encoder."""

    head: list[nn.Module]
    mark: str

    @property
    def fingerprint(self) -> str:
        return sha256_json([self.mark, self.store.manifest_hash])

    def rows(self, start: int, stop: int, ids: Ids) -> Rows:
        rows = self.store.between(start, stop)
        return Rows(self.vectors(rows.embeddings), ids, rows.labels, rows.payload)

    def vectors(self, base: Floats) -> Floats:
        with torch.inference_mode():
            features: dict[str, Any] = {"sentence_embedding": torch.from_numpy(base)}
            for module in self.head:
                features = module(features)
            return torch.nn.functional.normalize(features["sentence_embedding"], dim=1).numpy()


def head_over(encoder: Encoder, store: Store) -> list[nn.Module]:
    """The modules that an encoder has beyond the one that made the store."""
    made_by = store.manifest["encoder"] or {"name": "an unknown encoder", "fingerprint": None}
    modules = list(encoder.model)
    for count in range(len(modules) - 1, 0, -1):
        if not isinstance(modules[count], Dense | Normalize):
            break
        if fingerprint(encoder.model, count) == made_by["fingerprint"]:
            return _after_cut([module.cpu().float() for module in modules[count:]], store.dim)
    raise UserError(
        f"{store.folder}: was made by {made_by['name']}, which {encoder.name} is not a head over; give --data the texts or "
        f"images themselves (a store is added to another by store add, to an index by index add)"
    )


def _after_cut(head: list[nn.Module], dim: int) -> list[nn.Module]:
    """Without the step that cuts vectors, where the store's are cut already."""
    cuts = isinstance(head[0], Dense) and head[0].in_features > dim
    return head[1:] if cuts else head
