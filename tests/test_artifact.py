"""Artifacts: folders that name themselves, made whole or not at all, and refused when damaged."""

import shutil
from pathlib import Path

import pytest

from retrieval import artifact
from retrieval.artifact import MANIFEST, creating, member, read_manifest, staging_folder, verify, write_atomically
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


def test_a_link_is_written_through(tmp_path):
    """What it points to is replaced, on its own disk; the link stays, also one to nothing."""
    (tmp_path / "big").mkdir()
    link = tmp_path / "x"
    link.symlink_to(tmp_path / "big" / "real")
    for content in ("one", "two"):
        with creating(link, KIND, overwrite=True) as (folder, _):
            assert folder.parent == tmp_path / "big" and staging_folder(link) == folder
            (folder / "a").write_text(content)
        assert link.is_symlink() and (tmp_path / "big" / "real" / "a").read_text() == content
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "a", "big", MANIFEST, "real", "x"]


def test_files_that_are_shared_keep_their_mode(tmp_path):
    (tmp_path / "shared").write_text("a")
    (tmp_path / "shared").chmod(0o600)
    with creating(tmp_path / "x", KIND) as (folder, _):
        (folder / "linked").hardlink_to(tmp_path / "shared")
        (folder / "own").write_text("b")
        (folder / "own").chmod(0o600)
    modes = [(tmp_path / "x" / name).stat().st_mode & 0o777 for name in ("linked", "own")]
    assert modes[0] == 0o600 and modes[1] != 0o600


def test_a_file_whose_name_is_a_folders_leaves_nothing(tmp_path):
    (tmp_path / "taken" / "full").mkdir(parents=True)
    with pytest.raises(IsADirectoryError) as caught:
        write_atomically(tmp_path / "taken", b"x")
    assert caught.value.filename == str(tmp_path / "taken") and len(list(tmp_path.iterdir())) == 1


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


@pytest.mark.parametrize("exchanges", [True, False])
def test_an_overwrite_leaves_something_under_the_name_at_every_instant(tmp_path, monkeypatch, exchanges):
    """Looked at before each renaming; where names cannot be exchanged, what a kill left aside is put back by the next call."""
    out = tmp_path / "out"
    with creating(out, KIND) as (folder, _):
        (folder / "a").write_text("old")
    seen, renamed = [], Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, to: (seen.append(out.exists()), renamed(path, to))[1])
    if not exchanges:
        monkeypatch.setattr(artifact, "_exchanged", lambda one, other: False)
    with creating(out, KIND, overwrite=True) as (folder, _):
        (folder / "a").write_text("new")
    assert (out / "a").read_text() == "new" and all(seen) == exchanges and not (tmp_path / ".out.old").exists()
    out.rename(tmp_path / ".out.old")
    with pytest.raises(UserError, match="already exists"), creating(out, KIND):
        pass
    assert (out / "a").read_text() == "new"
