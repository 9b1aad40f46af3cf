"""Tar shards, read in place: the members that tarfile finds, no path followed, and one line for what is broken."""

import gzip
import os
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from some_pictures import as_bytes, noise, tar, write

from retrieval.errors import UserError
from retrieval.images import decode, picture_at, read_images
from retrieval.images.picture import content
from retrieval.images.shards import members

name = st.text(st.characters(codec="utf-8", exclude_characters="/\n\0"), min_size=1, max_size=120)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(name, st.binary(max_size=1500), max_size=6),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_members_are_those_of_tarfile(tmp_path_factory, files, kind):
    names = {(f"../{key}/x" if row % 2 else f"a{key}"): value for row, (key, value) in enumerate(files.items())}
    path = tar(tmp_path_factory.mktemp("tar") / "a.tar", names, format=kind)
    with tarfile.open(path) as archive:
        want = {each.name: archive.extractfile(each).read() for each in archive.getmembers()}
    assert {key: content(span) for key, span in members(path).items()} == want


def test_a_tar_that_is_cut_off_is_never_read_as_a_shorter_one(tmp_path):
    whole = tar(tmp_path / "a.tar", {f"{row}.png": as_bytes(one) for row, one in enumerate(noise(3))}).read_bytes()
    cut, count = tmp_path / "cut.tar", 0
    for stop in range(0, len(whole), 128):
        write(cut, whole[:stop])
        os.utime(cut, ns=(stop, stop))
        try:
            assert len(read_images(cut)) == 3 and not any(whole[stop:])
        except UserError as error:
            count += 1
            assert "cut.tar" in str(error) and "\n" not in str(error)
    assert count > 10


def test_a_tar_with_a_damaged_header_is_refused(tmp_path):
    path = tar(tmp_path / "a.tar", {f"{row}.png": as_bytes(one) for row, one in enumerate(noise(3))})
    broken = bytearray(path.read_bytes())
    broken[members(path)["1.png"].start - 300] ^= 255
    with pytest.raises(UserError, match="cut off or damaged at byte 1,?[0-9]+"):
        read_images(write(tmp_path / "b.tar", bytes(broken)))


def test_names_in_a_tar_are_no_paths(tmp_path):
    """Not when it is read, and not when a picture is opened again from what a store says of it."""
    write(tmp_path / "x.png", as_bytes(Image.new("RGB", (2, 2), "red")))
    inside = as_bytes(Image.new("RGB", (3, 3), "blue"))
    path = tar(tmp_path / "data" / "a.tar", {"../x.png": inside, f"{tmp_path}/x.png": inside})
    images = read_images(path)
    assert [images[row].size for row in range(2)] == [(3, 3)] * 2
    assert [decode(picture_at(str(each))).size for each in images.source] == [(3, 3)] * 2
    assert picture_at(f"{path}/../y.png") is None


def packed(path, *names, links=(), **others):
    content = as_bytes(noise(1)[0])
    tar(path, {each: content for each in names} | {key: value for key, value in others.items()})
    with tarfile.open(path, "a") as archive:
        for each in links:
            told = tarfile.TarInfo(each)
            told.type, told.linkname = tarfile.SYMTYPE, "1.png"
            archive.addfile(told)
    return path


def twice(path):
    with tarfile.open(path, "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("1.png"))
    return path


def put_together(path):
    one = packed(path, "1.png").read_bytes()
    return write(path, one + one)


def compressed(path):
    with tarfile.open(path.with_name("a.tar.gz"), "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("1.png"))
    return path.with_name("a.tar.gz")


@pytest.mark.parametrize(
    "made,words",
    [
        (lambda p: packed(p, "1.png", links=["2.png"]), ["2.png is a link", "--dereference"]),
        (twice, ["1.png stands in it more than once"]),
        (put_together, ["goes on after its end"]),
        (compressed, ["a.tar.gz: is compressed", "gunzip"]),
        (lambda p: write(p, b"no tar" * 200), ["not a whole tar"]),
        (lambda p: write(p, b""), ["not a whole tar"]),
        (lambda p: packed(p, **{"1.txt": b"x"}), ["holds no images"]),
        (lambda p: packed(p, "a/1.png", "2.png"), ["loose images such as 2.png"]),
        (lambda p: packed(p, "1.png", "2.png", **{"1.cls": b"x"}), ["a.tar/2.png: has no label beside it"]),
        (lambda p: packed(p, "1.png", "1.jpg", **{"1.cls": b"x"}), ["1.png and 1.jpg share"]),
        (lambda p: packed(p, "1.png", **{"1.json": b"{"}), ["1.json: is not JSON"]),
        (lambda p: packed(p, "1.png", **{"1.json": b"[]"}), ["1.json: is no JSON object"]),
        (lambda p: packed(p, "1.png", **{"1.cls": b"\xff"}), ["1.cls: is not UTF-8"]),
        (lambda p: packed(p, "1.png", "2.png", **{"1.cls": b"a  b", "2.cls": b"a b"}), ["look the same"]),
    ],
)
def test_bad_tars_are_refused(tmp_path, made, words):
    path = made(tmp_path / "a.tar")
    with pytest.raises(UserError) as caught:
        read_images(path)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_emoji_in_one_tar(real_data):
    path = real_data / "noto-emoji" / "noto-emoji.tar"
    images = read_images(path)
    counts = {label: images.labels.count(label) for label in set(images.labels)}
    assert counts == {"v2024": 3583, "v2017-blob": 2165, "v2014": 873}
    with tarfile.open(path) as archive:
        for row in (0, 3000, 6620):
            with Image.open(archive.extractfile(images.ids[row])) as want:
                clear = np.asarray(want.convert("RGBA"), float)
            solid = clear[..., 3:] / 255
            assert np.abs(np.asarray(images[row]) - (clear[..., :3] * solid + 255 * (1 - solid))).max() <= 1


@pytest.mark.slow
def test_a_packed_data_set_as_it_comes_and_unpacked(real_data, tmp_path):
    packed = real_data / "cifar10" / "cifar10_jpg.tar.gz"
    with pytest.raises(UserError, match="is compressed"):
        read_images(packed)
    path = tmp_path / "cifar10.tar"
    with gzip.open(packed) as source, open(path, "wb") as target:
        while block := source.read(1 << 24):
            target.write(block)
    images = read_images(path)
    with tarfile.open(path) as archive:
        names = [each.name for each in archive.getmembers() if each.isfile() and each.name.endswith(".jpg")]
        assert len(images) == len(names) == 60000
        with Image.open(archive.extractfile(names[-1])) as want:
            assert (np.asarray(images[59999]) == np.asarray(want.convert("RGB"))).all()
