"""Peers: the same values and gradients where the methods coincide, and not elsewhere."""

import pytest
import torch
from plain import LABELS, T, at_temperature, both, data
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from sentence_transformers.sentence_transformer import losses as peers
from torch.nn.functional import normalize

from retrieval.train.loss import contrastive_loss, named

EVERY = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


@pytest.mark.parametrize(
    "name,settings",
    [
        ("mnrl", {}),
        ("clip", {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}),
        ("gte", {"directions": EVERY, "partition_mode": "joint"}),
        ("llave(alpha=9.0)", {"hardness_mode": "in_batch_negatives", "hardness_strength": 9.0}),
        ("llave(alpha=4.0, on='all')", {"hardness_mode": "all_negatives", "hardness_strength": 4.0}),
        ("embedding-gemma", {"hardness_mode": "hard_negatives", "hardness_strength": 5.0}),
    ],
)
def test_multiple_negatives_ranking_loss(name, settings):
    inputs = data(negatives=0 if name in ("clip", "gte") else 14)
    columns = [inputs[0], inputs[1], *(inputs[2].split(7) if len(inputs) > 2 else [])]
    peer = peers.MultipleNegativesRankingLoss(torch.nn.Identity(), scale=1 / T, **settings)
    theirs = peer.compute_loss_from_embeddings(columns, None)
    ours = contrastive_loss(*inputs, config=at_temperature(named(name), T)).loss
    for got, want in zip(both(ours, inputs), both(theirs, inputs), strict=True):
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-11)
    other = peers.MultipleNegativesRankingLoss(torch.nn.Identity(), scale=0.9 / T, **settings)
    assert not torch.allclose(ours, other.compute_loss_from_embeddings(columns, None), rtol=1e-3)


class Given(torch.nn.Module):
    """A model whose embeddings are its input."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def forward(self, features):
        return {**features, "sentence_embedding": features[self.place]}


@pytest.mark.parametrize("anchors", [False, True])
@pytest.mark.parametrize("kind,margin", [("absolute", 0.0), ("absolute", 0.2), ("relative", 0.3)])
def test_gist_embed_loss(kind, margin, anchors):
    inputs = data(pairs=9)
    guide = torch.stack([normalize(x.detach(), dim=1) for x in data(seed=3, pairs=9, dim=4)])
    peer = peers.GISTEmbedLoss.__new__(peers.GISTEmbedLoss)
    torch.nn.Module.__init__(peer)
    peer.model, peer.guide = Given("own"), Given("guide")
    peer.similarity_fct = torch.nn.CosineSimilarity(dim=-1)
    peer.cross_entropy_loss = torch.nn.CrossEntropyLoss()
    peer.temperature, peer.margin_strategy, peer.margin, peer.must_retokenize = T, kind, margin, False
    peer.contrast_anchors, peer.contrast_positives, peer.gather_across_devices = anchors, False, False
    theirs = peer([{"own": x, "guide": g} for x, g in zip(inputs, guide, strict=True)], None)
    config = named(f"gist(temperature={T}, kind={kind!r}, margin={margin}, within_side={anchors})")
    ours = contrastive_loss(*inputs, guide=guide, config=config).loss
    for got, want in zip(both(ours, inputs), both(theirs, inputs), strict=True):
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-11)
    unmasked = contrastive_loss(*inputs, config=named(f"mnrl(temperature={T}, within_side={anchors})")).loss
    assert not torch.allclose(ours, unmasked, rtol=1e-3)


def test_ntxent_of_pytorch_metric_learning():
    inputs = data()
    theirs = NTXentLoss(temperature=T)(torch.cat(inputs), torch.arange(7).repeat(2))
    ours = contrastive_loss(*inputs, config=named(f"infonce(temperature={T})")).loss
    for got, want in zip(both(ours, inputs), both(theirs, inputs), strict=True):
        assert torch.allclose(got, want, rtol=1e-6)
    hard = contrastive_loss(*inputs, config=named(f"hcl(temperature={T})")).loss
    assert not torch.allclose(hard, theirs, rtol=1e-3)


def test_supcon_of_pytorch_metric_learning():
    inputs = data()
    labels = torch.tensor(LABELS["labels"])
    theirs = SupConLoss(temperature=T)(torch.cat(inputs), labels.repeat(2))
    ours = contrastive_loss(*inputs, labels=labels, config=named(f"supcon(temperature={T})")).loss
    for got, want in zip(both(ours, inputs), both(theirs, inputs), strict=True):
        assert torch.allclose(got, want, rtol=1e-6)
    sincere = contrastive_loss(*inputs, labels=labels, config=named(f"sincere(temperature={T})")).loss
    assert not torch.allclose(sincere, theirs, rtol=1e-3)
