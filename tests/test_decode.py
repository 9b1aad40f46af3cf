"""From bytes to RGB: every mode, upright, on white; JPEGs at a smaller scale; what is broken is named."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from some_pictures import as_bytes, noise, photo, write

from retrieval.errors import UserError
from retrieval.images import Images, as_rgb, decode

GREYS = np.array([[0, 1, 255, 256], [4097, 32768, 65534, 65535]])


def saved(path, picture, **options):
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16", "LA", "I", "F"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    ending = ".tif" if mode in ("CMYK", "I", "F") else ".png"
    colour = (1, 1) if mode == "LA" else 1
    assert decode(saved(tmp_path / f"a{ending}", Image.new(mode, (6, 4), colour))).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.jpg", photo(96, 64), exif=exif, quality=95)
    with Image.open(path) as plain:
        want = ImageOps.exif_transpose(plain)
    assert (np.asarray(decode(path)) == np.asarray(want)).all()
    assert decode(path).size == ((96, 64) if orientation <= 4 else (64, 96))
    assert decode(path, 16).size == ((24, 16) if orientation <= 4 else (16, 24))  # a quarter


@pytest.mark.parametrize(
    "kind,depth", [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("PPM", "<u2"), ("TIFF", "<i4")]
)
def test_sixteen_bits_are_scaled_not_cut_off(tmp_path, kind, depth):
    mode = {"<u2": "I;16", ">u2": "I;16B", "<i4": "I"}[depth]
    picture = Image.frombytes(mode, (4, 2), GREYS.astype(depth).tobytes())
    grey = np.asarray(decode(write(tmp_path / "a", as_bytes(picture, kind))))[..., 0]
    assert (grey == np.round(GREYS / 257)).all()


@pytest.mark.parametrize(
    "values,want",
    [
        ([0, 0.25, 1], [0, 64, 255]),
        ([0, 25, 255], [0, 25, 255]),
        ([-1, 0, 1], [0, 128, 255]),
        ([5e5, 1e6, 0], [128, 255, 0]),
    ],
)
def test_numbers_that_are_not_whole(tmp_path, values, want):
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([values], np.float32)))
    assert np.asarray(decode(path))[0, :, 0].tolist() == want
    with pytest.raises(UserError, match="does not decode to its end"):
        decode(saved(tmp_path / "b.tif", Image.fromarray(np.array([[np.nan, 1]], np.float32))))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_white(tmp_path, mode):
    rng = np.random.default_rng(0)
    clear = Image.fromarray(rng.integers(0, 256, (8, 9, 4), dtype=np.uint8), "RGBA")
    kept = clear.convert("LA") if mode == "LA" else clear.quantize(16) if mode == "P" else clear
    path = saved(tmp_path / "a.png", kept)
    with Image.open(path) as plain:
        assert plain.mode == mode
        values = np.asarray(plain.convert("RGBA"), float)
    solid = values[..., 3:] / 255
    assert np.abs(np.asarray(decode(path)) - (values[..., :3] * solid + 255 * (1 - solid))).max() <= 1
    assert (np.asarray(as_rgb(Image.new("RGBA", (1, 1), (9, 9, 9, 0)))) == 255).all()


@pytest.mark.parametrize("mode,colour", [("L", 7), ("RGB", (7, 8, 9)), ("P", 3)])
def test_one_colour_that_is_transparent_lies_on_white(tmp_path, mode, colour):
    picture = Image.new(mode, (2, 1), colour)
    if mode == "P":
        picture.putpalette(range(12))
    picture.putpixel((1, 0), 1 if mode != "RGB" else (1, 1, 1))
    path = saved(tmp_path / "a.png", picture, transparency=colour)
    assert np.asarray(decode(path))[0, 0].tolist() == [255] * 3 != np.asarray(decode(path))[0, 1].tolist()


def test_cmyk_with_and_without_adobes_mark(tmp_path):
    """Adobe writes ink upside down, and says that it is Adobe; without its mark values are ink as they are."""
    ink = Image.new("CMYK", (16, 16), (200, 40, 0, 20))
    want = np.asarray(ink.convert("RGB"), int)
    adobe = as_bytes(ink, "JPEG", quality=100)
    at = adobe.index(b"\xff\xee")
    bare = adobe[:at] + adobe[at + 2 + int.from_bytes(adobe[at + 2 : at + 4], "big") :]
    upside_down = as_bytes(Image.eval(ink, lambda value: 255 - value), "JPEG", quality=100)
    at = upside_down.index(b"\xff\xee")
    bare = upside_down[:at] + upside_down[at + 2 + int.from_bytes(upside_down[at + 2 : at + 4], "big") :]
    for content in (adobe, bare, as_bytes(ink, "TIFF")):
        assert np.abs(np.asarray(decode(write(tmp_path / "a", content)), int) - want).max() <= 4


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_moving_pictures_the_first(tmp_path, kind):
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    path = write(tmp_path / "a", as_bytes(first, kind, save_all=True, append_images=[second]))
    assert np.abs(np.asarray(decode(path), int) - (255, 0, 0)).max() <= 2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 200))
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_is_enough(tmp_path_factory, width, height, at_least):
    path = tmp_path_factory.getbasetemp() / "draft.jpg"
    picture = photo(width, height)
    picture.save(path, quality=90)
    scale = max((s for s in (1, 2, 4, 8) if width // s >= at_least and height // s >= at_least), default=1)
    with Image.open(path) as by_hand:
        by_hand.draft("RGB", (width // scale, height // scale))
        want = np.asarray(by_hand.convert("RGB"))
    got = np.asarray(decode(path, at_least))
    assert got.shape == want.shape == (-(-height // scale), -(-width // scale), 3) and (got == want).all()
    assert min(got.shape[:2]) >= min(at_least, width, height)
    whole = np.asarray(Images([path], None, "")[0])
    assert whole.shape == (height, width, 3)


def test_other_formats_are_decoded_whole(tmp_path):
    for kind in ("PNG", "WEBP", "BMP"):
        assert decode(write(tmp_path / "a", as_bytes(photo(64, 48), kind)), 6).size == (64, 48)
    phone = as_bytes(photo(64, 48), "MPO", save_all=True, append_images=[photo(64, 48, 1)])
    assert decode(write(tmp_path / "a", phone), 6).size == (8, 6)


def test_what_can_be_done_about_a_broken_picture(tmp_path):
    """Of a data set it can be left out; of one picture, as in a search, it cannot."""
    path = write(tmp_path / "0.png", b"")
    with pytest.raises(UserError, match="0.png: is not an image of a kind that Pillow knows: it is empty; replace it$"):
        decode(path)
    images = Images([path], None, "")
    with pytest.raises(UserError, match="it is empty; replace it, or leave such out: --skip-bad .*skip_bad=True"):
        images[0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_what_is_cut_off_or_broken_is_named(tmp_path, kind):
    whole = as_bytes(photo(64, 64), kind)
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.3, 0.6, 0.9):
        with pytest.raises(UserError, match="cut: (begins as an image and does not decode|is not an image of a kind)"):
            decode(write(tmp_path / "cut", whole[: int(len(whole) * share)]))
    for _ in range(40):
        broken = bytearray(whole)
        for at in rng.integers(0, len(whole), 4):
            broken[at] ^= int(rng.integers(1, 256))
        try:
            assert decode(write(tmp_path / "broken", bytes(broken))).mode == "RGB"
        except UserError as error:
            assert "\n" not in str(error)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", Image.new("RGB", (50, 50)))
    whole = saved(tmp_path / "b.jpg", Image.new("RGB", (50, 50)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for bomb in (path, whole):
        with pytest.raises(UserError, match="more than 100 pixels"):
            decode(bomb, 2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # half of what is refused outright: Pillow would only warn
    with pytest.raises(UserError, match="more than 2,000 pixels"):
        decode(path)


def test_threads_decode_side_by_side(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    paths = [write(tmp_path / f"{row}.png", as_bytes(one)) for row, one in enumerate(noise(7))]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(decode, paths * 20))
    for row, picture in enumerate(found):
        with Image.open(io.BytesIO(paths[row % 7].read_bytes())) as want:
            assert (np.asarray(picture) == np.asarray(want)).all()
