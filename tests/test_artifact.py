"""Artifacts: folders that name themselves, made whole or not at all, and refused when damaged."""

import shutil

import pytest

from retrieval.artifact import MANIFEST, creating, member, read_manifest, staging_folder, verify
from retrieval.errors import UserError
from retrieval.locks import sole_writer

KIND = "store"


def test_a_manifest_cannot_point_outside(tmp_path):
    for name in ("../secret", "/etc/passwd", "a/../../b"):
        with pytest.raises(UserError, match="outside"):
            member(tmp_path, name)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="outside"):
        member(tmp_path / "in", "link")


def test_an_error_while_creating_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), creating(tmp_path / "x", "index") as (folder, _):
        (folder / "half").write_text("half")
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format,word", [(99, "newer"), (0, "older")])
def test_another_format_is_refused(tmp_path, monkeypatch, format, word):
    monkeypatch.setattr("retrieval.artifact.FORMATS", {KIND: format})
    with creating(tmp_path / "x", KIND) as (folder, _):
        (folder / "a").write_text("a")
    monkeypatch.undo()
    with pytest.raises(UserError, match=word):
        read_manifest(tmp_path / "x", KIND)
    shutil.rmtree(tmp_path / "x")


def test_another_kind_is_refused(tmp_path):
    with creating(tmp_path / "y", "index"):
        pass
    with pytest.raises(UserError, match="is of kind index, not store"):
        read_manifest(tmp_path / "y", KIND)


def test_verify_hashes_everything(tmp_path):
    with creating(tmp_path / "x", KIND) as (folder, _):
        (folder / "a").write_text("a")
    manifest = read_manifest(tmp_path / "x", KIND)
    verify(tmp_path / "x", KIND, manifest["files"])
    (tmp_path / "x" / "a").write_text("b")
    with pytest.raises(UserError, match="does not match"):
        verify(tmp_path / "x", KIND, manifest["files"])


def test_the_second_of_two_writers_is_refused(tmp_path):
    with creating(tmp_path / "x", "index") as (folder, _):
        (folder / "mine").write_text("mine")
        with pytest.raises(UserError, match="another process is writing"), creating(tmp_path / "x", "index"):
            pass
        assert (folder / "mine").read_text() == "mine"
    assert (tmp_path / "x" / "mine").exists() and (tmp_path / "x" / MANIFEST).exists()


def test_a_writer_that_comes_just_too_late_overwrites_nothing(tmp_path):
    """The other finishes between the look at the final name and the lock."""
    staging = staging_folder(tmp_path / "x")
    late = creating(tmp_path / "x", "index")
    with creating(tmp_path / "x", "index"):
        pass
    with pytest.raises(UserError, match="already exists"):
        late.__enter__()
    assert (tmp_path / "x" / MANIFEST).exists()
    staging.mkdir(exist_ok=True)
    with sole_writer(staging):  # and the lock that moved away with the folder holds nobody up
        pass
