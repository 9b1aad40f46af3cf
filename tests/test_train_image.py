"""Training image encoders: what the trainer sees of pictures, and what it makes of an encoder."""

import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from apart import begin, killed, killed_unsaved, together
from PIL import Image
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from some_pictures import as_bytes, photo, write
from test_train_processes import fingerprint

from retrieval.cli.held import by_classes
from retrieval.encoder import Encoder, load_encoder
from retrieval.images import Images, read_images
from retrieval.pixels import pixels_of
from retrieval.samples import digits
from retrieval.train import pictures as held_pictures
from retrieval.train.augment import PRESETS, Augmentation, augment, crop_and_flip
from retrieval.train.average import Average
from retrieval.train.batches import Pairs, Plan
from retrieval.train.collate import Collator, Shares, Source
from retrieval.train.image import ImageConfig, plan_batches, train_image
from retrieval.train.loss import named
from retrieval.train.pictures import decoded, pictures_of
from retrieval.train.projection import add_projection, remove_projection, without_projection
from retrieval.train.vision import SCRATCH, input_side, network

STILL = Augmentation(scale=(1.0, 1.0), ratio=1.0, flip=0, jitter=0, grey=0, blur=0)
LOSS = named("hcl")
QUICK = dict(steps=3, batch_size=8, scratch=True)


@pytest.fixture(scope="module")
def small():
    return network("small", 8, "cpu", 0)


def fresh():
    return network("small", 8, "cpu", 0)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The folder of a ViT of three small layers, with dropout."""
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(**sizes, image_size=32, patch_size=8, hidden_dropout_prob=0.1)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder / "bare")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / "bare")
    whole = SentenceTransformer(modules=[Transformer(str(folder / "bare")), Pooling(32)], device="cpu")
    whole.save_pretrained(str(folder / "encoder"), create_model_card=False)
    return folder / "encoder"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits as files, a folder a class."""
    root, data = tmp_path_factory.mktemp("digits"), digits()
    for row in range(80):
        write(root / data.labels[row] / f"{row:02}.png", as_bytes(Image.fromarray(data.source[row])))
    return root


@pytest.fixture
def command(vit, folder):
    return ["train", "image", "--data", folder, "--model", vit, "--steps", 6, "--batch-size", 8, "--lr", 1e-3, "--device", "cpu"]  # fmt: skip


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_a_crop_has_the_pictures_own_proportions():
    """A circle in a picture that was squeezed into a square is a circle again, wherever it is cut out."""
    y, x = np.mgrid[0:100, 0:200]
    circle = (((x - 100) ** 2 + (y - 50) ** 2) < 30**2).astype(np.uint8) * 255
    squeezed = np.array(Image.fromarray(circle).resize((100, 100), Image.Resampling.BILINEAR))
    how = Augmentation(scale=(0.4, 0.4), ratio=1.0, flip=0, jitter=0, grey=0, blur=0)
    torch.manual_seed(0)
    pictures = torch.from_numpy(squeezed)[None, None].repeat(64, 1, 1, 1).float() / 255
    apart = crop_and_flip(pictures, (64, 64), how, torch.full((64,), 2.0))
    whole = [each for each in apart[:, 0] if each[0].sum() + each[-1].sum() + each[:, 0].sum() + each[:, -1].sum() == 0]
    assert len(whole) > 10
    for each in whole:
        wide, high = (each > 0.5).any(0).sum().item(), (each > 0.5).any(1).sum().item()
        assert abs(wide - high) <= 2
    flat = crop_and_flip(pictures[:1], (64, 64), STILL)[0, 0]
    assert (flat > 0.5).any(0).sum() < 0.6 * (flat > 0.5).any(1).sum()  # a negative control


def test_files_are_decoded_as_pillow_does_it(tmp_path):
    paths = [write(tmp_path / f"{row}.png", as_bytes(photo(60 + row, 40, row))) for row in range(3)]
    images = Images(paths, None, "")
    squares, proportions = decoded(images, np.array([2, 0]), (20, 24))
    for found, path in zip(squares, (paths[2], paths[0]), strict=True):
        opened = Image.open(path).resize((24, 20), Image.Resampling.BILINEAR)
        assert (found.permute(1, 2, 0).numpy() == np.asarray(opened)).all()
    assert proportions.tolist() == pytest.approx([62 / 40, 60 / 40])


def test_pictures_too_many_for_memory_are_decoded_as_they_come(folder, monkeypatch):
    """Whether held or decoded batch by batch, the same pictures make the same encoder."""
    data = read_images(folder)
    model = fresh()
    train_image(model, data, ImageConfig(**QUICK), LOSS, source="x")
    monkeypatch.setattr(held_pictures, "MEMORY_LIMIT", 1000)
    assert pictures_of(data, pixels_of(model), PRESETS["light"]).held is None
    other = fresh()
    train_image(other, data, ImageConfig(**QUICK), LOSS, source="x")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in weights(model).items())


def test_a_batch_has_both_views_together_or_apart(small):
    data = digits().part(0, 40)
    pictures = pictures_of(data, pixels_of(small), STILL)
    rows = np.arange(6)
    plan = Plan(lambda: iter([Pairs(rows, rows + 10)] * 3), 6, 3, None)
    source = Source([np.arange(40)] * 2, (None, None), np.stack([pictures.codes] * 2), plan)
    share = next(iter(Shares([source], 1)))
    expected = small.eval().encode([data[row] for row in [*range(6), *range(10, 16)]])
    for settings, sizes in (({}, [12]), ({"apart": True}, [6, 6]), ({"most": 5}, [5, 5, 2]), ({"most": 4, "apart": True}, [4, 2, 4, 2])):  # fmt: skip
        collator = Collator(small, [source], settings.get("most"), pictures, settings.get("apart", False))
        made = collator(share)
        chunks = [collator.on_device(chunk) for chunk in made["chunks"]]
        assert [len(chunk["pixel_values"]) for chunk in chunks] == sizes
        with torch.inference_mode():
            vectors = torch.cat([small(dict(chunk))["sentence_embedding"] for chunk in chunks])[made["batch"]["order"]]
        assert np.allclose(vectors, expected, atol=2e-3)  # the processor rounds to bytes between


def test_statistics_of_the_views_differ_when_they_go_apart():
    data = Images(digits().source[:64], None, "")
    loss = named("hcl(label_mask=False)")
    found = []
    for apart in (False, True):
        model = fresh()
        train_image(model, data, ImageConfig(**QUICK, apart=apart), loss, source="x")
        found.append(weights(model))
    assert any(not torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_a_projection_is_taken_off_again(small):
    model = fresh()
    modules, before = [type(each).__name__ for each in model], weights(model)
    add_projection(model, 16)
    assert model.get_embedding_dimension() == 16
    bare = without_projection(model)
    assert [type(each).__name__ for each in bare] == modules and bare.get_embedding_dimension() == 128
    remove_projection(model)
    assert [type(each).__name__ for each in model] == modules
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    picture = digits()[0]
    assert np.allclose(Encoder(bare, "").encode([picture]), Encoder(model, "").encode([picture]), atol=1e-6)


def test_training_through_a_projection_changes_the_encoder_behind_it(tmp_path, folder, run_cli):
    words = [
        "--model",
        "small",
        "--data",
        folder,
        "--steps",
        4,
        "--batch-size",
        8,
        "--projection",
        8,
        "--device",
        "cpu",
    ]
    run_cli("train", "image", *words, "--eval-data", folder, "--eval-every", 2, "--output", tmp_path / "run")
    trained = load_encoder(str(tmp_path / "run"), "cpu")
    assert trained.dim == 128 and [type(each).__name__ for each in trained.model] == [
        type(each).__name__ for each in fresh()
    ]
    assert json.loads((tmp_path / "run" / "run" / "config.json").read_text())["projection"] == 8


@pytest.mark.parametrize("name,dim,side", [("small", 128, 32), ("resnet18", 512, 32), ("resnet50", 2048, 32)])
def test_networks_from_scratch_open_plainly(name, dim, side, tmp_path):
    model = network(name, 8, "cpu", 0).eval()
    again = network(name, 8, "cpu", 0).eval()
    assert model.get_embedding_dimension() == dim and pixels_of(model).size == (side, side)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in weights(model).items())
    model.save_pretrained(str(tmp_path / "m"), create_model_card=False)
    plain = SentenceTransformer(str(tmp_path / "m"), device="cpu")
    picture = digits()[0]
    assert np.allclose(plain.encode([picture]), model.encode([picture]), atol=1e-6)
    assert set(SCRATCH) == {"small", "resnet18", "resnet50"}
    assert [input_side(side, "resnet18") for side in (8, 32, 100)] == [32, 128, 224]


def test_resnet18_is_resnet18():
    """The weights of the backbone that everyone calls so, without its classifier: 11.18 million; ResNet-50: 23.5."""
    for name, millions in (("resnet18", 11.18), ("resnet50", 23.51)):
        count = sum(parameter.numel() for parameter in network(name, 8, "cpu", 0).parameters())
        assert count / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(
    "options",
    [["--head"], ["--last-layers", 1], ["--lora", 2], ["--layer-decay", 0.5], ["--mini-batch-size", 5], ["--accumulate", 2]]
    + [["--batches", "hard"], ["--batches", "classes", "--per-class", 4], ["--augment", "photo"], ["--dims", "8,16"]]
    + [["--interpolate", 0.5], ["--apart"], ["--compute", "bfloat16"]],
    ids=lambda options: options[0].strip("-") if options[0] != "--batches" else options[1],
)  # fmt: skip
def test_every_way_of_training_ends_in_a_plain_encoder(command, vit, options, run_cli, tmp_path):
    run_cli(*command, *options, "--output", tmp_path / "run")
    model = SentenceTransformer(str(tmp_path / "run"), device="cpu")
    vectors, before = (each.encode([digits()[0]]) for each in (model, SentenceTransformer(str(vit), device="cpu")))
    assert vectors.shape == (1, 32) and np.isfinite(vectors).all()
    assert (np.linalg.norm(vectors - before) > 1e-4) or options[0] == "--head"


def test_what_is_frozen_stays(command, vit, run_cli, tmp_path):
    run_cli(*command, "--last-layers", 1, "--output", tmp_path / "run")
    before, after = (SentenceTransformer(str(each), device="cpu").state_dict() for each in (vit, tmp_path / "run"))
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed and all("layers.2." in key or "model.layernorm" in key for key in changed), changed


def test_cached_gradients_are_those_of_the_whole_batch(vit, monkeypatch):
    """Without dropout and changes at random: twelve pictures five at a time, or all."""
    monkeypatch.setitem(PRESETS, "light", STILL)
    data, found = digits().part(0, 60), []
    for most in (None, 5):
        model = load_encoder(str(vit), "cpu").model
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        config = ImageConfig(steps=3, batch_size=6, lr=1e-3, mini_batch_size=most)
        curve = train_image(model, data, config, LOSS, source="x")
        found.append((weights(model), [step["loss"] for step in curve]))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)
    assert all(torch.allclose(value, found[1][0][key], atol=2e-4) for key, value in found[0][0].items())


def test_an_average_is_that_of_the_weights_of_every_step():
    model = fresh()
    average, expected = Average(model, 0.5), weights(model)
    for step in range(1, 5):
        for value in model.state_dict().values():
            value.fill_(step) if value.is_floating_point() else value.fill_(7)
        average.on_step_end(None, SimpleNamespace(global_step=step), None)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {
            key: decay * value + (1 - decay) * step if value.is_floating_point() else torch.full_like(value, 7)
            for key, value in expected.items()
        }
    with average.in_place():
        assert all(torch.allclose(value, expected[key], atol=1e-6) for key, value in weights(model).items())
    assert all((value == 4).all() for value in model.state_dict().values() if value.is_floating_point())
    average.keep()
    assert all(torch.allclose(value, expected[key], atol=1e-6) for key, value in weights(model).items())


def test_the_average_is_what_is_judged_and_kept(command, folder, run_cli, tmp_path):
    """With the best of several judgements, and without: what the run says of the encoder in it is so."""
    for name, options in {"best": ["--eval-every", 2], "last": []}.items():
        output = tmp_path / name
        found = json.loads(
            run_cli(*command, *options, "--eval-data", folder, "--ema", 0.9, "--output", output, "--json").stdout
        )
        told = found["metrics"]["held-out"]["metrics"]["map@r"]["after"]
        judged = by_classes(read_images(folder)).judge(load_encoder(str(output), "cpu")).means()["map@r"]
        assert told == pytest.approx(judged, abs=1e-6)
    run_cli(*command, "--output", tmp_path / "plain")
    assert fingerprint(tmp_path / "plain") != fingerprint(tmp_path / "last")


@pytest.mark.slow
@pytest.mark.parametrize("step,where,options", [(4, "step", []), (3, "save", ["--ema", "0.9"])])
def test_a_killed_training_goes_on_to_the_same_weights(command, step, where, options, run_cli, tmp_path):
    command = [*map(str, command), "--augment", "simclr", *options]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_cli(*command, "--output", whole)
    done = begin(killed, step, where, *command, "--output", broken).end()
    assert done.returncode == -signal.SIGKILL and not broken.exists(), done.stderr
    again = run_cli(*command, "--output", broken)
    assert "goes on from step" in again.stderr
    assert fingerprint(broken) == fingerprint(whole)
    assert (broken / "run" / "curve.csv").read_bytes() == (whole / "run" / "curve.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("scratch", [[], ["--model", "small"]], ids=["vit", "small"])
def test_two_processes_train_a_network_together(scratch, command, run_cli, tmp_path):
    """Their batch is one: negatives of both. What each draws at random differs from one process, so weights do too."""
    done = together(2, *command, *scratch, "--output", tmp_path / "run")
    assert [each.returncode for each in done] == [0, 0], done
    assert load_file(tmp_path / "run" / "model.safetensors")
    curve = (tmp_path / "run" / "run" / "curve.csv").read_text().splitlines()
    assert float(dict(zip(curve[0].split(","), curve[1].split(","), strict=True))["negatives"]) > 8


@pytest.mark.parametrize(
    "options,words",
    [
        (["--head", "--projection", 8], "--projection: is for training the encoder itself"),
        (["--head", "--apart"], "--apart: is for training the encoder itself"),
        (["--head", "--augment", "light"], "--augment: is for training the encoder itself"),
        (["--dims", "8", "--projection", 8], "--dims: are of the encoder's own vectors"),
        (["--model", "small", "--head"], "--head: a linear layer on random weights"),
        (["--eval-every", 2], "--eval-every: there is nothing to judge by"),
    ],
)
def test_settings_that_cannot_be_are_one_line(command, options, words, run_cli, tmp_path):
    error = run_cli(*command, *options, "--output", tmp_path / "run", code=2).stderr
    assert words in error and len(error.strip().splitlines()) <= 3


def test_lora_needs_linear_layers(folder, run_cli, tmp_path):
    words = ["train", "image", "--data", folder, "--model", "small", "--lora", 2, "--output", tmp_path / "run"]
    error = run_cli(*words, "--device", "cpu", code=2).stderr
    assert "--lora: adds to linear layers, of which ResNetModel has none" in error and "target_modules" not in error


def test_a_head_needs_labels(folder, vit, run_cli, tmp_path):
    flat = tmp_path / "flat"
    for path in sorted(folder.rglob("*.png"))[:8]:
        write(flat / path.name, path.read_bytes())
    words = [
        "train",
        "image",
        "--data",
        flat,
        "--model",
        vit,
        "--head",
        "--output",
        tmp_path / "run",
        "--device",
        "cpu",
    ]
    assert "has no labels, and two views" in run_cli(*words, code=2).stderr


def test_a_class_of_one_picture_is_left_out_with_a_word(folder, run_cli, tmp_path):
    data = tmp_path / "data"
    chosen = [
        path
        for label, count in {"0": 4, "1": 4, "2": 4, "7": 1}.items()
        for path in sorted((folder / label).iterdir())[:count]
    ]
    for path in chosen:
        write(data / path.parent.name / path.name, path.read_bytes())
    words = [
        "train",
        "image",
        "--data",
        data,
        "--model",
        "small",
        "--steps",
        2,
        "--device",
        "cpu",
        "--output",
        tmp_path / "run",
    ]
    told = run_cli(*words).stderr
    assert "a class has one row, which makes no pair and is left out: '7'" in told
    config = json.loads((tmp_path / "run" / "run" / "config.json").read_text())
    assert config["batch_size"] == 6


def test_a_killed_training_without_a_checkpoint_says_so(command, run_cli, tmp_path):
    words = [*map(str, command), "--output", str(tmp_path / "run")]
    begin(killed_unsaved, 4, "step", *words).end()
    assert "had no checkpoint yet; it begins anew" in run_cli(*words).stderr


def test_a_mistyped_network_is_guessed(command, run_cli, tmp_path):
    assert "did you mean small?" in run_cli(*command, "--model", "smal", "--output", tmp_path / "run", code=2).stderr


def test_a_plan_is_of_the_data_alone(vit):
    model = load_encoder(str(vit), "cpu").model
    data = digits().part(0, 40)
    config = ImageConfig(steps=2, batch_size=4)
    one, other = (plan_batches(data, config, LOSS, "x", each) for each in (None, model))
    assert (next(one.batches()).anchors == next(other.batches()).anchors).all()


def test_presets_differ():
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (8, 3, 20, 24), dtype=torch.uint8)
    made = {name: augment(pictures, (32, 32), how) for name, how in PRESETS.items()}
    assert all(each.shape == (8, 3, 32, 32) and each.min() >= 0 and each.max() <= 1 + 1e-6 for each in made.values())
    assert len(PRESETS) == 4 and not PRESETS["clip"].flip and not PRESETS["light"].flip and PRESETS["photo"].flip
