"""open_clip's folders: the same vectors as its formulas give, written out here, and as open_clip itself where it is installed."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from retrieval.encoder import fingerprint, load_encoder
from retrieval.errors import UserError
from retrieval.openclip import CONFIG, WEIGHTS
from retrieval.samples import digits

WIDE, HEADS, LAYERS, DIM, SIDE, PATCH, LENGTH = 24, 3, 2, 12, 32, 8, 20
LETTERS = [chr(c) for c in range(33, 127)]
VOCABULARY = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
VISION = {"image_size": SIDE, "patch_size": PATCH, "layers": LAYERS, "width": WIDE, "head_width": WIDE // HEADS}
TEXT = {"context_length": LENGTH, "vocab_size": len(VOCABULARY), "width": WIDE, "heads": HEADS, "layers": LAYERS}


def tower(prefix, rng):
    def some(*shape):
        return torch.from_numpy(rng.normal(0, 0.3, shape)).float()

    weights = {}
    for layer in range(LAYERS):
        at = f"{prefix}transformer.resblocks.{layer}."
        for norm in ("ln_1", "ln_2"):
            weights |= {f"{at}{norm}.weight": 1 + some(WIDE), f"{at}{norm}.bias": some(WIDE)}
        for name, high, wide in (("attn.in_proj_", 3 * WIDE, WIDE), ("attn.out_proj.", WIDE, WIDE), ("mlp.c_fc.", 4 * WIDE, WIDE), ("mlp.c_proj.", WIDE, 4 * WIDE)):  # fmt: skip
            weights |= {f"{at}{name}weight": some(high, wide), f"{at}{name}bias": some(high)}
    return weights, some


def checkpoint():
    weights, some = tower("visual.", np.random.default_rng(0))
    more, _ = tower("", np.random.default_rng(1))
    weights |= more
    for norm in ("visual.ln_pre", "visual.ln_post", "ln_final"):
        weights |= {f"{norm}.weight": 1 + some(WIDE), f"{norm}.bias": some(WIDE)}
    return weights | {
        "visual.class_embedding": some(WIDE),
        "visual.positional_embedding": some((SIDE // PATCH) ** 2 + 1, WIDE),
        "visual.conv1.weight": some(WIDE, 3, PATCH, PATCH),
        "visual.proj": some(WIDE, DIM),
        "positional_embedding": some(LENGTH, WIDE),
        "token_embedding.weight": some(len(VOCABULARY), WIDE),
        "text_projection": some(WIDE, DIM),
        "logit_scale": torch.tensor(math.log(100)),
    }


def transformed(x, weights, prefix, mask, activation):
    """The residual blocks, one head after the other; x: (B, L, W)."""

    def normed(value, name):
        return F.layer_norm(value, (WIDE,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    for layer in range(LAYERS):
        at = f"{prefix}transformer.resblocks.{layer}."
        inner = normed(x, f"{at}ln_1") @ weights[f"{at}attn.in_proj_weight"].T + weights[f"{at}attn.in_proj_bias"]
        heads = []
        for head in range(HEADS):
            size = WIDE // HEADS
            q, k, v = (part[..., head * size : (head + 1) * size] for part in inner.chunk(3, -1))
            heads.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(size) + mask, -1) @ v)
        x = x + torch.cat(heads, -1) @ weights[f"{at}attn.out_proj.weight"].T + weights[f"{at}attn.out_proj.bias"]
        grown = normed(x, f"{at}ln_2") @ weights[f"{at}mlp.c_fc.weight"].T + weights[f"{at}mlp.c_fc.bias"]
        x = x + activation(grown) @ weights[f"{at}mlp.c_proj.weight"].T + weights[f"{at}mlp.c_proj.bias"]
    return x, normed


def pictures_seen(values, weights, activation):
    patches = F.conv2d(values, weights["visual.conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    first = weights["visual.class_embedding"].expand(len(values), 1, WIDE)
    x = torch.cat([first, patches], 1) + weights["visual.positional_embedding"]
    x = F.layer_norm(x, (WIDE,), weights["visual.ln_pre.weight"], weights["visual.ln_pre.bias"])
    x, normed = transformed(x, weights, "visual.", torch.zeros(()), activation)
    return F.normalize(normed(x[:, 0], "visual.ln_post") @ weights["visual.proj"], dim=-1)


def words_read(tokens, weights, activation):
    x = weights["token_embedding.weight"][tokens] + weights["positional_embedding"][: tokens.shape[1]]
    mask = torch.full((tokens.shape[1],) * 2, -math.inf).triu(1)
    x, normed = transformed(x, weights, "", mask, activation)
    last = normed(x, "ln_final")[torch.arange(len(tokens)), tokens.argmax(1)]
    return F.normalize(last @ weights["text_projection"], dim=-1)


def written(folder, weights, *, vision=(), text=(), pixels=(), tokenizer=True, **model):
    from transformers import CLIPTokenizerFast

    folder.mkdir(exist_ok=True)
    if tokenizer:
        (folder / "vocab.json").write_text(json.dumps({token: at for at, token in enumerate(VOCABULARY)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    told = {
        "model_cfg": {"embed_dim": DIM, "vision_cfg": VISION | dict(vision), "text_cfg": TEXT | dict(text), **model}
    }
    told["preprocess_cfg"] = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], **dict(pixels)}
    (folder / CONFIG).write_text(json.dumps(told))
    save_file(weights, folder / WEIGHTS)
    return str(folder)


def token_ids(*texts):
    start, end = len(VOCABULARY) - 2, len(VOCABULARY) - 1
    longest = max(map(len, texts))
    rows = [[start, *(VOCABULARY.index(c) for c in text[:-1]), VOCABULARY.index(text[-1] + "</w>"), end] for text in texts]  # fmt: skip
    return torch.tensor([row + [0] * (longest + 2 - len(row)) for row in rows])


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("prefix", ["", "text."])
def test_its_vectors_are_those_of_its_formulas(tmp_path, quick, prefix):
    weights = checkpoint()
    named = {
        f"{'' if name.startswith(('visual', 'logit')) else prefix}{name}": value for name, value in weights.items()
    }
    encoder = load_encoder(written(tmp_path / "m", named, quick_gelu=quick), "cpu")

    def activation(x):
        return x * torch.sigmoid(1.702 * x) if quick else F.gelu(x)

    texts = ["hello", "abc", "a"]
    expected = words_read(token_ids(*texts), weights, activation)
    assert np.allclose(encoder.encode(texts), expected, atol=1e-5)

    rng = np.random.default_rng(2)
    pictures = [Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(3)]
    values = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in pictures]) / 255
    values = (values - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.3, 0.25])[:, None, None]
    seen = pictures_seen(values, weights, activation)
    assert np.allclose(encoder.encode(pictures), seen, atol=1e-5)
    other = pictures_seen(values, weights, F.relu)
    assert not np.allclose(encoder.encode(pictures), other, atol=1e-3)


def test_it_is_known_by_what_it_computes_and_saved_as_a_plain_encoder(tmp_path):
    weights = checkpoint()
    one = load_encoder(written(tmp_path / "one", weights), "cpu")
    assert one.fingerprint == load_encoder(written(tmp_path / "two", weights), "cpu").fingerprint
    assert one.name.endswith("one") and one.takes("text") and one.takes("image") and one.dim == DIM
    assert one.fingerprint != load_encoder(written(tmp_path / "three", weights, quick_gelu=True), "cpu").fingerprint
    one.model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    again = load_encoder(str(tmp_path / "saved"), "cpu")
    assert fingerprint(again.model) == one.fingerprint
    pictures = [Image.fromarray(one) for one in digits().source[:2]]
    assert np.allclose(again.encode(pictures), one.encode(pictures))


def test_every_process_has_its_weights(tmp_path, monkeypatch):
    """transformers' own writing does nothing in all but the first of several processes."""
    folder = written(tmp_path / "clip", checkpoint())
    known = load_encoder(folder, "cpu").fingerprint
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", lambda *_, **__: None)
    assert load_encoder(folder, "cpu").fingerprint == known


def test_a_long_text_is_cut_at_its_own_length(tmp_path):
    encoder = load_encoder(written(tmp_path / "m", checkpoint()), "cpu")
    long, cut = encoder.encode(["a" * 50, "a" * (LENGTH - 2)])
    assert encoder.model.max_seq_length == LENGTH and long.shape == cut.shape


def test_squashed_pictures_are_squashed(tmp_path):
    wide = [Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 120, 3), dtype=np.uint8))]
    whole = load_encoder(written(tmp_path / "one", checkpoint(), pixels={"resize_mode": "squash"}), "cpu")
    cut = load_encoder(written(tmp_path / "two", checkpoint()), "cpu")
    squashed = [wide[0].resize((SIDE, SIDE), Image.Resampling.BICUBIC)]
    assert np.allclose(whole.encode(wide), whole.encode(squashed), atol=1e-5)
    assert not np.allclose(cut.encode(wide), whole.encode(wide), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vision": {"timm_model_name": "vit_base"}}, "vision_cfg.timm_model_name is \"vit_base\""),
        ({"vision": {"layers": [3, 4, 6, 3]}}, "vision_cfg.layers is [3, 4, 6, 3]"),
        ({"vision": {"pool_type": "avg"}}, "vision_cfg.pool_type is \"avg\""),
        ({"vision": {"something_new": 1}}, "vision_cfg.something_new is 1"),
        ({"text": {"hf_model_name": "roberta-base"}}, "text_cfg.hf_model_name is \"roberta-base\""),
        ({"text": {"no_causal_mask": True}}, "text_cfg.no_causal_mask is true"),
        ({"multimodal_cfg": {}}, "multimodal_cfg is {}"),
        ({"pixels": {"resize_mode": "longest"}}, "preprocess_cfg.resize_mode is \"longest\""),
        ({"pixels": {"interpolation": "random"}}, "preprocess_cfg.interpolation is \"random\""),
        ({"vision": {"patch_size": 16}}, "not the weights that open_clip_config.json tells of"),
        ({"text": {"layers": 3}}, "layers.2"),
        ({"tokenizer": False}, "lacks a tokenizer"),
    ],
)  # fmt: skip
def test_what_clip_does_not_compute_is_refused_by_name(tmp_path, change, told):
    with pytest.raises(UserError) as error:
        load_encoder(written(tmp_path / "m", checkpoint(), **change), "cpu")
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_pickle_a_broken_file_and_a_foreign_configuration_are_refused(tmp_path):
    folder = tmp_path / "m"
    name = written(folder, checkpoint())
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        load_encoder(name, "cpu")
    (folder / WEIGHTS).rename(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match="is a pickle, which is not opened"):
        load_encoder(name, "cpu")
    (tmp_path / "bare").mkdir()
    (folder / CONFIG).rename(tmp_path / "bare" / CONFIG)
    with pytest.raises(UserError, match="lacks open_clip_model.safetensors and a tokenizer"):
        load_encoder(str(tmp_path / "bare"), "cpu")
    (tmp_path / "bare" / CONFIG).rename(folder / CONFIG)
    written(folder, checkpoint())
    for strange in ({"vision_cfg": "ViT-B-32"}, {"text_cfg": {"width": 25}}, {"vision_cfg": {"head_width": 0}}):
        (folder / CONFIG).write_text(json.dumps({"model_cfg": {"embed_dim": 12, **strange}}))
        with pytest.raises(UserError, match="cannot load this encoder"):
            load_encoder(name, "cpu")
    (folder / CONFIG).write_text("[]")
    with pytest.raises(UserError, match="not what open_clip writes"):
        load_encoder(name, "cpu")


def test_open_clip_itself_gives_the_same(tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="the package open_clip_torch is not installed")
    torch.manual_seed(0)
    theirs = open_clip.model.CLIP(DIM, {**VISION}, {**TEXT}).eval()
    name = written(tmp_path / "m", theirs.state_dict())
    ours = load_encoder(name, "cpu")
    tokens = token_ids("hello", "ab")
    padded = F.pad(tokens, (0, LENGTH - tokens.shape[1]))
    with torch.no_grad():
        texts = theirs.encode_text(padded, normalize=True)
    assert np.allclose(ours.encode(["hello", "ab"]), texts, atol=1e-5)
    rng = np.random.default_rng(2)
    pictures = [Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)) for _ in range(3)]
    prepared = open_clip.image_transform(SIDE, is_train=False, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    with torch.no_grad():
        seen = theirs.encode_image(torch.stack([prepared(p) for p in pictures]), normalize=True)
    assert np.allclose(ours.encode(pictures), seen, atol=2e-2)
