"""Pictures that are judged by and trained on too, whatever they are called: said, and in a sweep left out."""

import numpy as np
import pytest
from PIL import Image
from some_pictures import as_bytes, tar, write

from retrieval.images import Images, read_images, stand_in

ONCE = ["--model", "small", "--steps", 2, "--batch-size", 8, "--device", "cpu"]


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return as_bytes(Image.fromarray(pixels), "BMP")  # all of one size


@pytest.fixture
def photos(tmp_path):
    """Two sets of 16 and 17 in two classes, which have one picture in common, under different names."""
    for row in range(16):
        write(tmp_path / "a" / "xy"[row % 2] / f"{row}.bmp", picture(row))
        write(tmp_path / "b" / "xy"[row % 2] / f"{row}.bmp", picture(20 + row))
    write(tmp_path / "b" / "y" / "new.bmp", picture(3))
    return tmp_path


def test_they_are_found_by_their_content(photos):
    a, b = read_images(photos / "a"), read_images(photos / "b")
    assert [b.source[row].name for row in np.flatnonzero(stand_in(b, a))] == ["new.bmp"]
    assert [a.source[row].name for row in np.flatnonzero(stand_in(a, b))] == ["3.bmp"]
    in_tar = read_images(tar(photos / "b.tar", {f"{row}.bmp": picture(20 + row) for row in range(4)}))
    assert stand_in(a, a).all() and stand_in(in_tar, b).all() and not stand_in(in_tar, a).any()
    arrays = [Images(np.stack([np.asarray(each[row]) for row in range(len(each))]), None, "") for each in (a, b)]
    assert stand_in(arrays[1], arrays[0]).sum() == 1 and not stand_in(arrays[0], a).any()
    assert not stand_in(Images(arrays[0].source[:, :8], None, ""), arrays[0]).any()
    (photos / "b" / "y" / "new.bmp").unlink()
    assert not stand_in(b, a).any()


def test_training_says_so(photos, run_cli):
    words = ["train", "image", "--data", photos / "a", *ONCE]
    said = run_cli(*words, "--eval-data", photos / "b", "--output", photos / "run").stderr
    assert f"Warning: 1 of the 17 pictures of --eval-data stands in {photos / 'a'}" in said
    (photos / "b" / "y" / "new.bmp").unlink()
    assert "of --eval-data" not in run_cli(*words, "--eval-data", photos / "b", "--output", photos / "other").stderr


def test_training_on_captions_says_so(tiny, captioned, run_cli, tmp_path):
    words = ["train", "pairs", "--data", captioned, "--image-model", "small", "--text-model", tiny, *ONCE[2:]]
    said = run_cli(*words, "--eval-data", captioned, "--output", tmp_path / "run").stderr
    assert f"Warning: 42 of the 42 pictures of --eval-data stand in {captioned}" in said


def test_a_sweep_leaves_them_out(photos, run_cli):
    words = [
        "sweep",
        "--data",
        photos / "a",
        "--held-out",
        photos / "b",
        *ONCE,
        "--whole",
        "--kappa",
        "0,1",
        "--seeds",
        1,
    ]
    said = run_cli(*words, "--output", photos / "sweep").stderr
    assert "16 to train on, 16 to judge by, 1 left out that are trained on" in said
