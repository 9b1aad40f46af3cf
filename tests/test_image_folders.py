"""Folders as people have them: links among them, and one picture that is no folder."""

import pytest
from some_pictures import tar
from test_images import picture

from retrieval.errors import UserError
from retrieval.images import read_images


def test_links_to_folders_are_followed(tmp_path):
    """Splits are often made of them; one that leads nowhere is told, and a circle ends."""
    for name in ("whole/dog/1.png", "whole/dog/old/2.png", "half/cat/1.png"):
        picture(tmp_path / name)
    half = tmp_path / "half"
    links = {"dog": "../whole/dog", "eel": "../whole/eel", "cat/9.png": "9.png", "cat/back": "..", "self": "self"}
    for name, target in links.items():
        (half / name).symlink_to(target)
    images = read_images(half)
    assert images.ids == ["cat/1.png", "dog/1.png", "dog/old/2.png"] and images.labels == ["cat", "dog", "dog"]
    told = images.origin.partition("; not read: ")[2].split(", ")
    assert sorted(told) == ["1 .png (a broken link)", "1 eel (a broken link)", "1 self (a broken link)"]
    tar(half / "a.tar", {"a.txt": b"x"})
    (half / "cat" / "1.png").unlink()
    assert len(read_images(half)) == 2  # a tar beside pictures is no shard
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "1.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"found 1 \.png \(a broken link\)"):
        read_images(tmp_path / "lost")


def test_one_picture_is_no_data_set(tmp_path, run_cli):
    """A class of one is told in the singular; the picture alone is refused with what is taken, not as a text of a wrong kind."""
    path = picture(tmp_path / "set" / "cat" / "1.png")
    assert read_images(tmp_path / "set").origin == "1 image, 1 class"
    told = run_cli("embed", "--encoder", "nowhere", "--data", path, "--output", tmp_path / "s", code=2).stderr
    assert "1.png: is one picture; give a folder of images, a table" in told
