"""Pairs with pictures: two encoders joined, what a batch holds, and training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense

from retrieval.cli.held import by_shown
from retrieval.encode import Encoding
from retrieval.encoder import Encoder, fingerprint, load_encoder
from retrieval.errors import UserError
from retrieval.images import Images, Pairs, read_pairs
from retrieval.pixels import pixels_of
from retrieval.samples import digits
from retrieval.tokens import tokenises_apart
from retrieval.train.augment import PRESETS, Augmentation
from retrieval.train.batches import Pairs as Drawn
from retrieval.train.batches import Plan
from retrieval.train.collate import Collator, Shares, Source
from retrieval.train.joined import join, joining, side_of
from retrieval.train.loss import named
from retrieval.train.pairs import PairConfig, plan_batches, settled_texts, train_pairs, with_hard_captions
from retrieval.train.pictures import pictures_of
from retrieval.train.vision import network

STILL = Augmentation(scale=(1.0, 1.0), ratio=1.0, flip=0, jitter=0, grey=0, blur=0)
LOSS = named("hn-nce(label_mask=False)")


@pytest.fixture(scope="module")
def pairs(captioned):
    return read_pairs(captioned)


def joined(tiny, **options):
    torch.manual_seed(0)
    return join(network("small", 8, "cpu", 0), load_encoder(str(tiny), "cpu").model, **options)


def test_two_encoders_joined_are_a_plain_one(tiny, tmp_path):
    model = joined(tiny, dim=24).eval()
    assert {"image", "text"} <= set(model.modalities) and model.get_embedding_dimension() == 24
    model.save_pretrained(str(tmp_path / "m"), create_model_card=False)
    plain = SentenceTransformer(str(tmp_path / "m"), device="cpu")
    picture, texts = digits()[0], ["one", "two and three", "four"]
    ours = Encoder(model, "")
    assert tokenises_apart(model)
    assert np.allclose(plain.encode(texts), ours.encode(texts), atol=1e-5)
    assert np.allclose(plain.encode([picture]), ours.encode([picture]), atol=1e-5)
    assert fingerprint(plain) == fingerprint(model)
    with torch.no_grad():
        joining(model)[0].linear.weight.add_(0.1)
    assert fingerprint(plain) != fingerprint(model)


def test_a_frozen_side_keeps_its_width(tiny):
    assert joined(tiny).get_embedding_dimension() == 32  # of the text side, the narrower
    assert joined(tiny, frozen="image").get_embedding_dimension() == 128
    assert len(joining(joined(tiny))) == 2 and len(joining(joined(tiny, frozen="text"))) == 1
    with pytest.raises(UserError, match="the frozen side's vectors have 32 numbers"):
        joined(tiny, frozen="text", dim=16)
    with pytest.raises(UserError, match="--image-model: takes no images"):
        text = load_encoder(str(tiny), "cpu").model
        join(text, text)


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("kind", ["joined", "clip"])
def test_a_frozen_side_stays_as_it_is(kind, side, tiny, clip, pairs):
    """Also its batch statistics, and no dropout is drawn in it."""
    model = joined(tiny, frozen=side) if kind == "joined" else load_encoder(str(clip), "cpu").model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    frozen = {id(p) for part in side_of(model, side) for p in [*part.parameters(), *part.buffers()]}
    names = {n for n, p in [*model.named_parameters(), *model.named_buffers()] if id(p) in frozen}
    train_pairs(model, pairs, PairConfig(steps=3, batch_size=8, freeze=side, lr=1e-2), LOSS, source="x")
    after = model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and names and not changed & names
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["joined", "clip"])
def test_frozen_texts_are_encoded_once_and_train_the_same(kind, tiny, clip, pairs, monkeypatch):
    def fresh():
        return joined(tiny, frozen="text") if kind == "joined" else load_encoder(str(clip), "cpu").model

    def trained(data, **settings):
        model, asked = fresh(), []
        read = side_of(model, "text")[0]
        read.register_forward_hook(lambda module, inputs, output: asked.append(1))
        config = PairConfig(batch_size=8, augment="light", freeze="text", lr=1e-2, **settings)
        told = config.encoded_first(data, model)
        seen = []
        curve = train_pairs(model, data, config, LOSS, source="x", encoded=seen.append)
        assert sum(seen) == told
        return model.state_dict(), [point["loss"] for point in curve], len(asked), told

    data = with_hard_captions(pairs, 1)
    once, curve, passes, told = trained(data, steps=8)
    monkeypatch.setattr("retrieval.train.pairs.SETTLED", 0)
    again, same, more, nothing = trained(data, steps=8)
    assert np.allclose(curve, same, atol=1e-4) and passes < more and told > 0 == nothing
    # A key's bias adds the same to every logit: its gradient is what rounding makes of 0.
    assert all(
        torch.allclose(once[key].float(), again[key].float(), atol=1e-3) for key in once if "k_proj.bias" not in key
    )
    assert not np.allclose(curve, trained(data, steps=8, seed=1)[1], atol=1e-2)


@pytest.mark.parametrize("freeze", [None, "text"])
def test_captions_are_trained_with_the_prompt_that_they_are_judged_with(freeze, tiny, pairs, monkeypatch):
    model = joined(tiny, frozen=freeze)
    model.prompts |= {"query": "a picture of ", "document": "on it is "}
    seen = []
    monkeypatch.setattr("retrieval.train.pairs.Collator", lambda *parts: seen.append(parts) or Collator(*parts))
    config = PairConfig(batch_size=8, steps=8, freeze=freeze)
    train_pairs(model, pairs, config, LOSS, source="x")
    _, sources, *_, settled = seen[0]
    assert sources[0].prompts == ("a picture of ", "a picture of ")
    if freeze:
        texts = list(settled.rows)
        judged = by_shown(pairs).parts[1]
        assert judged.role == "query" and list(judged.items.texts) == texts
        found = Encoding(model, role=judged.role).encode(texts)
        assert np.allclose(settled.vectors.numpy(), found, atol=1e-5)
        assert not np.allclose(found, Encoding(model, role="document").encode(texts), atol=1e-3)


def test_texts_are_not_settled_where_what_they_meet_learns_or_few_are_asked_for(tiny, pairs):
    config = PairConfig(batch_size=8, steps=8, freeze="text")
    model = joined(tiny, frozen="text")
    assert len(settled_texts(model, pairs, config)) == len(set(pairs.columns["positive"]))
    assert not settled_texts(model, pairs, replace(config, steps=2))
    assert not settled_texts(model, pairs, replace(config, freeze="image"))
    assert not settled_texts(model, pairs, replace(config, freeze=None))
    shared = SentenceTransformer(modules=[*model, Dense(32, 16)], device="cpu")
    assert not settled_texts(shared, pairs, config)


def test_a_batch_holds_pictures_and_texts_in_their_places(tiny, pairs):
    model = joined(tiny).eval()
    images = pairs.columns["anchor"]
    pictures = pictures_of(Images(images.source[:30], None, ""), pixels_of(model), STILL)
    rows = np.array([4, 9, 7, 2])
    captions = pairs.columns["positive"]
    wrong = [f"not {row}" if row != 9 else "" for row in range(30)]
    plan = Plan(lambda: iter([Drawn(rows, rows)]), 4, 1, None)
    codes = np.stack([np.arange(30), 100 + np.arange(30)])
    for columns in ([np.arange(30), captions[:30], wrong], [captions[:30], np.arange(30), wrong]):
        sources = [Source(columns, (None, None), codes, plan)]
        for most in (None, 3):
            collator = Collator(model, sources, most, pictures)
            made = collator(next(iter(Shares(sources, 1))))
            chunks = [collator.on_device(chunk) for chunk in made["chunks"]]
            with torch.inference_mode():
                found = torch.cat([model(dict(chunk))["sentence_embedding"] for chunk in chunks])[
                    made["batch"]["order"]
                ]
            shown = Encoding(model).encode([images[int(row)] for row in rows])
            told = Encoding(model).encode([captions[row] for row in rows])
            first, second = (shown, told) if isinstance(columns[0], np.ndarray) else (told, shown)
            no = Encoding(model).encode([wrong[row] for row in rows if wrong[row]])
            assert np.allclose(found, np.concatenate([first, second, no]), atol=3e-3)
            assert made["batch"]["negative_pairs"].tolist() == [0, 2, 3]


def test_one_picture_with_two_captions_is_one(tiny, pairs):
    """Neither caption is a negative of the picture, nor of the other."""
    model = joined(tiny)
    config = PairConfig(steps=1, batch_size=len(pairs))
    plan = plan_batches(pairs, config, LOSS, "x")
    codes = np.stack([pairs.identities[name] for name in ("anchor", "positive")])
    share = next(iter(Shares([Source([], (None, None), codes, plan)], 1)))
    first = [place for place, row in enumerate(share.pairs.anchors) if row in (0, 1)]  # rows 0 and 1 are picture 0
    assert len(set(share.items[:, first].flatten().tolist())) == 1
    assert len(set(share.items[0].tolist())) == 40
    curve = train_pairs(model, pairs, config, LOSS, source="x")
    assert curve[0]["negatives"] < len(pairs)


@pytest.mark.parametrize("loss", ["hn-nce", "clip", "siglip", "hcl"])
def test_training_brings_pictures_and_captions_together(loss, tiny, pairs, monkeypatch):
    monkeypatch.setitem(PRESETS, "clip", STILL)
    model = joined(tiny)
    config = PairConfig(steps=12, batch_size=20, lr=3e-3, image_rate=3e-3)
    loss = named(f"{loss}(label_mask=False)")
    before = by_shown(pairs).judge(Encoder(model, "")).means()
    curve = train_pairs(model, pairs, config, loss, source="x")
    after = by_shown(pairs).judge(Encoder(model, "")).means()
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert after["t2i_mrr"] + after["i2t_mrr"] > before["t2i_mrr"] + before["i2t_mrr"]


def test_each_side_has_its_own_rate(tiny):
    model = joined(tiny)
    rates = PairConfig(steps=1, image_rate=0.5, text_rate=0.25).rates(model)
    import re

    found = {}
    for name, _ in model.named_parameters():
        hits = [rate for key, rate in rates.items() if re.search(key, f"model.{name}")]
        found[name] = hits[-1]
    assert {rate for name, rate in found.items() if "sub_modules.image.0" in name} == {0.5}
    assert {rate for name, rate in found.items() if "sub_modules.text.0" in name} == {0.25}
    assert sorted(set(found.values())) == [1e-3, 0.25, 0.5]


def test_hard_captions_are_new_columns(pairs):
    more = with_hard_captions(pairs, 2, seed=3)
    assert list(more.columns) == ["anchor", "positive", "negative_1", "negative_2"] and len(more) == len(pairs)
    again = with_hard_captions(pairs.take(range(len(pairs) - 1, -1, -1)), 2, seed=3)
    assert again.columns["negative_1"] == more.columns["negative_1"][::-1]  # whatever the order
    assert with_hard_captions(pairs, 2, seed=4).columns != more.columns
    told = dict(zip(map(str, pairs.columns["anchor"].source), pairs.columns["positive"], strict=True))
    for row, picture in enumerate(map(str, pairs.columns["anchor"].source)):
        assert more.columns["negative_1"][row] != told[picture]
    assert np.mean([bool(text) for text in more.columns["negative_1"]]) > 0.8
    assert with_hard_captions(pairs, 0) is pairs
    only = Pairs({name: pairs.columns["anchor"] for name in ("anchor", "positive")}, "")
    with pytest.raises(UserError, match="--hard-captions: need pictures as anchors"):
        with_hard_captions(only, 1)
