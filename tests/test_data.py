"""Reading what people have, and refusing the rest in one line."""

import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from retrieval.data import read_texts
from retrieval.errors import UserError
from retrieval.images import decode, is_image_data, read_images


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "name,content",
    [
        ("a.csv", 'text,label\n"one, two",x\nthree,y\n'),
        ("a.csv", '\ufefflabel,text\nx,"one, two"\ny,three\n'),
        ("a.tsv", "text\tcategory\none, two\tx\nthree\ty\n"),
        ("a.jsonl", '{"text": "one, two", "label": "x"}\n\n{"text": "three", "label": "y"}\n'),
    ],
)
def test_labelled_texts(tmp_path, name, content):
    data = read_texts(write(tmp_path / name, content))
    assert (data.texts, data.labels, data.ids, len(data)) == (["one, two", "three"], ["x", "y"], None, 2)
    assert not data.is_pairs and "2 rows" in data.origin and "2 classes" in data.origin


def test_pairs_with_negatives_and_ids(tmp_path):
    data = read_texts(write(tmp_path / "a.csv", "id,anchor,positive,negative_1,negative_2\n7,a,b,c,d\n8,e,f,g,h\n"))
    assert data.is_pairs and data.ids == ["7", "8"] and data.texts == ["a", "e"]
    assert list(data.columns) == ["anchor", "positive", "negative_1", "negative_2"]


def test_lines(tmp_path):
    data = read_texts(write(tmp_path / "a.txt", "one\n\n  two \n"))
    assert data.texts == ["one", "two"] and data.labels is None


@pytest.mark.parametrize(
    "name,content,words",
    [
        ("a.csv", "", ["is empty"]),
        ("a.csv", "text,label\n", ["is empty"]),
        ("a.txt", "\n\n", ["is empty"]),
        ("a.csv", "title,label\na,b\n", ["no column text", "title, label"]),
        ("a.csv", "text,label\na,\n", ["line 2", "'label'"]),
        ("a.csv", "text,label\na,b\nc\n", ["line 3", "fewer fields"]),
        ("a.csv", "text,label\na,b,c\n", ["line 2", "more fields"]),
        ("a.csv", 'text,label\n"a,b\n', ["quote"]),
        ("a.csv", b"text,label\na,b\n\xff\xfe,c\n", ["not UTF-8", "line 3"]),
        ("a.jsonl", '{"text": "a"}\n{"text"\n', ["line 2", "not JSON"]),
        ("a.jsonl", "[1]\n", ["line 1", "not an object"]),
        ("a.csv", "id,text\n1,a\n1,b\n", ["'1'", "more than once"]),
        ("a.xlsx", "x", [".xlsx"]),
    ],
)
def test_bad_texts_are_refused(tmp_path, name, content, words):
    with pytest.raises(UserError) as caught:
        read_texts(write(tmp_path / name, content))
    for word in (*words, name):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def picture(path, mode="RGB", size=(6, 4), colour=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def test_class_folders_and_flat_folders(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "dog/1.jpg"):
        picture(tmp_path / "set" / name)
    images = read_images(tmp_path / "set")
    assert images.labels == ["cat", "cat", "dog"] and images[0].mode == "RGB" and len(images.ids) == 3
    assert read_images(tmp_path / "set" / "cat").labels is None
    picture(tmp_path / "set" / "loose.png")
    with pytest.raises(UserError, match="loose"):
        read_images(tmp_path / "set")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    ending = ".tif" if mode == "CMYK" else ".png"
    assert decode(picture(tmp_path / f"a{ending}", mode, colour=1)).mode == "RGB"


def test_exif_turns_the_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert decode(tmp_path / "a.jpg").size == (4, 6)


def test_a_csv_of_paths(tmp_path):
    picture(tmp_path / "pics" / "a.png")
    path = write(tmp_path / "a.csv", "path,label\npics/a.png,x\n")
    images = read_images(path)
    assert is_image_data(path) and images.labels == ["x"] and images[0].size == (6, 4)
    with pytest.raises(UserError, match="line 2 lacks its label"):
        read_images(write(tmp_path / "b.csv", "path,label\npics/a.png,\n"))


def test_arrays(tmp_path):
    grey = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    np.savez(tmp_path / "a.npz", images=grey, labels=np.array([1, 0]))
    images = read_images(tmp_path / "a.npz")
    assert images.labels == ["1", "0"] and images[1].size == (4, 3)
    idx = b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 4) + grey.tobytes()
    with gzip.open(tmp_path / "t-images-idx3-ubyte.gz", "wb") as file:
        file.write(idx)
    write(tmp_path / "t-labels-idx1-ubyte", "")
    assert read_images(tmp_path / "t-images-idx3-ubyte.gz").labels is None
    with gzip.open(tmp_path / "t-labels-idx1-ubyte.gz", "wb") as file:
        file.write(b"\0\0\x08\x01" + struct.pack(">I", 2) + bytes([7, 8]))
    images = read_images(tmp_path / "t-images-idx3-ubyte.gz")
    assert images.labels == ["7", "8"] and (images.source == grey).all()


@pytest.mark.parametrize(
    "arrays,word",
    [
        ({"images": np.zeros((2, 3, 3), np.float32)}, "float32"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": np.zeros(3)}, "labels of shape"),
        ({"pixels": np.zeros((2, 3, 3), np.uint8)}, "no array 'images'"),
        ({"images": np.zeros((0, 3, 3), np.uint8)}, "is empty"),
        ({"images": np.array([{}])}, "not an .npz"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, arrays, word):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=word):
        read_images(tmp_path / "a.npz")


def test_bad_pictures_are_named_or_skipped(tmp_path):
    picture(tmp_path / "s" / "x" / "good.png")
    bad = write(tmp_path / "s" / "x" / "bad.png", b"not a picture")
    whole = picture(tmp_path / "s" / "x" / "cut.png", size=(64, 64)).read_bytes()
    write(tmp_path / "s" / "x" / "cut.png", whole[: len(whole) // 2])
    with pytest.raises(UserError, match="bad.png: does not decode"):
        decode(bad)
    images = read_images(tmp_path / "s", skip_bad=True)
    assert len(images) == 1 and [p.name for p in images.skipped] == ["bad.png", "cut.png"]
    with pytest.raises(UserError, match="none of the 1"):
        only = tmp_path / "only" / "x"
        only.mkdir(parents=True)
        write(only / "bad.png", b"")
        read_images(tmp_path / "only", skip_bad=True)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = picture(tmp_path / "a.png", size=(50, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="more than 100 pixels"):
        decode(path)
