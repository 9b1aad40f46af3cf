"""What is found out about an encoder's processor, against the processor itself: encoders of every kind, tiny and untrained."""

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from some_pictures import as_bytes, photo, write

from retrieval.embed import embed
from retrieval.encode import Encoding
from retrieval.encoder import Encoder
from retrieval.errors import UserError
from retrieval.images import Images, decode, read_images
from retrieval.pixels import Pixels, by_pillow, features_of, least_side, pixels_of
from retrieval.routes import reader
from retrieval.train.augment import Augmentation
from retrieval.train.pictures import pictures_of

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def vit(size, **settings):
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    model = ViTModel(ViTConfig(**SMALL, image_size=size, patch_size=16), add_pooling_layer=False)
    return model, ViTImageProcessorPil(size={"height": size, "width": size}, **settings)


def dino():
    from transformers import Dinov2Config, Dinov2Model
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    crop = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}
    return Dinov2Model(Dinov2Config(**SMALL, image_size=56, patch_size=14)), BitImageProcessorPil(**crop)


def clip():
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    crop = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
    return CLIPVisionModel(CLIPVisionConfig(**SMALL, image_size=48, patch_size=16)), CLIPImageProcessorPil(**crop)


def siglip():
    from transformers import SiglipVisionConfig, SiglipVisionModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    config = SiglipVisionConfig(**SMALL, image_size=64, patch_size=16)
    return SiglipVisionModel(config), SiglipImageProcessorPil(size={"height": 64, "width": 64})


def siglip2():
    from transformers import Siglip2VisionConfig, Siglip2VisionModel
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    config = Siglip2VisionConfig(**SMALL, num_patches=16, patch_size=16)
    return Siglip2VisionModel(config), Siglip2ImageProcessorPil(max_num_patches=16)


def convnext(edge, **settings):
    from transformers import ConvNextConfig, ConvNextModel
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    model = ConvNextModel(ConvNextConfig(hidden_sizes=[4, 4, 4, 16], depths=[1, 1, 1, 1]))
    return model, ConvNextImageProcessorPil(size={"shortest_edge": edge}, **settings)


def swin():
    from transformers import SwinConfig, SwinModel

    sizes = {"embed_dim": 4, "depths": [1, 1], "num_heads": [1, 1], "window_size": 4, "image_size": 64, "patch_size": 4}
    return SwinModel(SwinConfig(**sizes)), vit(64)[1]


def resnet():
    from transformers import ResNetConfig, ResNetModel

    model = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 16], depths=[1, 1], layer_type="basic"))
    return model, convnext(224)[1]


KINDS = {  # the encoder, the size it sees, and the side to which a picture's shorter one is brought
    "vit": (lambda: vit(64), 64, 64),
    "vit without mean": (lambda: vit(64, do_normalize=False), 64, 64),
    "vit of bytes": (lambda: vit(64, do_rescale=False), 64, 64),
    "dinov2": (dino, 56, 64),
    "clip": (clip, 48, 48),
    "siglip": (siglip, 64, 64),
    "siglip2": (siglip2, 64, 64),
    "convnext": (lambda: convnext(112), 112, 128),
    "convnext, crop_pct": (lambda: convnext(90, crop_pct=0.9), 90, 100),
    "convnext, large": (lambda: convnext(384), 384, 384),
    "swin": (swin, 64, 64),
    "resnet": (resnet, 224, 256),
}


def encoder_of(made, folder):
    model, processor = made()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    transformer = Transformer(str(folder))
    dim = getattr(model.config, "hidden_size", None) or model.config.hidden_sizes[-1]
    encoder = SentenceTransformer(modules=[transformer, Pooling(dim)], device="cpu").eval()
    by_pillow(encoder)
    return encoder


@pytest.mark.parametrize("made,size,shorter", KINDS.values(), ids=KINDS)
def test_pixels_are_those_of_the_processor(tmp_path, made, size, shorter):
    """A picture brought to the size by Pillow, scaled as we say, is what the processor makes of it."""
    model = encoder_of(made, tmp_path / "m")
    pixels = pixels_of(model)
    processor = reader(model, "image").processor
    processor = getattr(processor, "image_processor", processor)
    assert pixels.size == (size, size) and pixels.shorter == shorter and least_side(model) == 2 * shorter
    kind = type(processor).__name__  # ConvNeXt's squeezes from 384 pixels on
    assert pixels.keeps_proportions == (kind.startswith(("Bit", "CLIP", "ConvNext", "Siglip2")) and size < 384)
    picture = photo(300, 300)
    square = np.asarray(picture.resize((shorter, shorter), Image.Resampling(processor.resample)))
    start = (shorter - size) // 2
    cut = torch.from_numpy(square[start : start + size, start : start + size].copy())
    ours = features_of(cut.permute(2, 0, 1)[None] / 255, pixels)
    theirs = model.preprocess([picture])
    assert {name for name in theirs if name != "modality"} >= {name for name in ours if name != "modality"}
    with torch.inference_mode():
        vector = model(dict(ours))["sentence_embedding"].numpy()
    assert np.allclose(vector, model.encode([picture]), atol=1e-3 * np.abs(vector).max())
    for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes"):
        assert (name in ours) == (name in theirs)
        if name in ours:
            assert ours[name].shape == theirs[name].shape
            assert (ours[name].float() - theirs[name].float()).abs().max() <= 1.001 / 255 / pixels.std.min() * 0.02


@pytest.mark.parametrize(
    "made,changed",
    [
        (lambda: convnext(112), {"crop_pct": 0.5}),
        (siglip2, {"max_num_patches": 9}),
        (dino, {"crop_size": {"height": 42, "width": 42}}),
    ],
    ids=["convnext", "siglip2", "dinov2"],
)
def test_a_fingerprint_knows_what_the_processor_does(tmp_path, made, changed):
    """Also the settings that processors of one kind alone have."""
    model = encoder_of(made, tmp_path / "m")
    picture, mark = photo(300, 300), Encoder(model, "").fingerprint
    before = model.encode([picture])
    for name, value in changed.items():
        setattr(reader(model, "image").processor, name, value)
    assert not np.allclose(before, model.encode([picture])) and Encoder(model, "").fingerprint != mark


def test_what_is_no_image_encoder_is_refused(minilm):
    with pytest.raises(UserError, match="takes no images"):
        pixels_of(minilm.model)
    assert least_side(minilm.model) is None


@pytest.mark.parametrize("route", ["image", "pictures"])
def test_the_route_of_pictures_is_found(tmp_path, minilm, route):
    made = encoder_of(lambda: vit(64), tmp_path / "m")
    mappings = {} if route == "image" else {(None, "image"): route}
    router = Router({"text": list(minilm.model), route: list(made)}, route_mappings=mappings, default_route="text")
    model = SentenceTransformer(modules=[router], device="cpu")
    assert (
        reader(model, "image") is made[0]
        and reader(model, "text") is minilm.model[0]
        and pixels_of(model).size == (64, 64)
    )
    picture = photo(80, 60)
    assert np.allclose(model.encode([picture]), made.encode([picture]), atol=1e-6)
    assert np.allclose(Encoding(model).encode([picture]), Encoding(made).encode([picture]), atol=1e-6)


def test_every_way_to_encode_decodes_alike(tmp_path):
    """Files, lists of paths, and pictures that were decoded by hand at the same scale have the same vectors."""
    encoder = Encoder(encoder_of(lambda: vit(32), tmp_path / "m"), "vit")
    paths = [write(tmp_path / "p" / f"{row}.jpg", as_bytes(photo(300, 260, row), "JPEG")) for row in range(3)]
    assert [decode(path, 64).size for path in paths] == [(75, 65)] * 3
    store = embed(encoder, read_images(tmp_path / "p"), tmp_path / "s")
    assert store.manifest["computed"] == [{"backend": "torch", "compute": "float32", "jpeg_at_least": 64}]
    held = store.load()
    assert (encoder.encode(paths) == held.embeddings).all()
    assert (encoder.encode([decode(path, 64) for path in paths]) == held.embeddings).all()
    whole = encoder.encode([decode(path) for path in paths])
    cosines = (whole * held.embeddings).sum(1)
    assert (whole != held.embeddings).any() and cosines.min() > 0.99
    arrays = Images(np.stack([np.asarray(decode(path)) for path in paths]), None, "")
    assert embed(encoder, arrays, tmp_path / "t").manifest["computed"] == [{"backend": "torch", "compute": "float32"}]


@pytest.mark.parametrize("channels", [(), (3,)])
def test_large_pictures_of_an_array_are_trained_on_whole(channels):
    """Each pixel counts: of a fine pattern the mean is left, not some of its points."""
    array = np.tile(np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 255, (2, 1, 1))
    array = np.repeat(array[..., None], 3, 3) if channels else array
    pixels = Pixels((8, 8), torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1), 8, True)
    pictures = pictures_of(Images(array, None, ""), pixels, Augmentation(flip=0, jitter=0, grey=0, blur=0))
    views = pictures.views(pictures.features(np.arange(2)))
    assert views["pixel_values"].shape == (2, 3, 8, 8) and (views["pixel_values"] - 0.5).abs().max() < 0.1
    small = np.zeros((2, 9, 5, *channels), np.uint8)
    assert pictures_of(Images(small, None, ""), pixels, pictures.how).held[0].shape[2:] == (9, 5)


def test_what_pillow_opened_is_encoded_as_its_file(tmp_path):
    """Upright, and of sixteen bits: plain sentence-transformers looks at what Pillow opened as it lies."""
    encoder = Encoder(encoder_of(lambda: vit(32), tmp_path / "m"), "vit")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(60, 40).save(tmp_path / "a.jpg", exif=exif)
    values = np.random.default_rng(0).integers(0, 65536, (40, 60)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "b.png")
    photo(60, 40).convert("CMYK").save(tmp_path / "c.jpg")
    paths = [tmp_path / name for name in ("a.jpg", "b.png", "c.jpg")]
    wanted, opened = encoder.encode(paths), [Image.open(path) for path in paths]
    assert np.array_equal(encoder.encode(opened), wanted)
    assert np.array_equal(encoder.encode([str(path) for path in paths]), wanted)
    assert np.array_equal(encoder.encode(read_images(tmp_path)), wanted)
    arrays = np.stack([np.asarray(photo(40, 40))] * 2)
    assert np.array_equal(encoder.encode(Images(arrays, None, "")), encoder.encode([photo(40, 40)] * 2))
    with pytest.raises(UserError, match=r"gone.jpg: no such file"):
        encoder.encode([str(tmp_path / "gone.jpg")])
    plain = encoder.model.encode([each.convert("RGB") for each in opened[:1]], normalize_embeddings=True)
    assert not np.allclose(plain, wanted[:1], atol=1e-3)  # or nothing would be turned here
