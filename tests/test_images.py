"""Reading pictures of every kind that people have: the same pixels and labels from each, and one line for what is broken."""

import csv
import gzip
import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from some_pictures import LABELS, as_bytes, noise, tar, write

from retrieval.data import Asked
from retrieval.errors import UserError
from retrieval.images import decode, is_image_data, picture_at, read_images


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


def test_a_folder_tells_what_is_not_read(tmp_path):
    """A class that is all .heic, as phones write it, does not vanish without a word."""
    for name in ("cat/1.png", "dog/1.jfif.jpg", ".thumbs/1.png"):
        picture(tmp_path / "set" / name)
    (tmp_path / "set" / "dog" / "1.jfif.jpg").rename(tmp_path / "set" / "dog" / "1.jfif")
    for name in ("owl/1.HEIC", "owl/2.heic", "cat/1.txt", ".DS_Store", ".thumbs/1.db"):
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"x")
    images = read_images(tmp_path / "set")
    assert images.labels == ["cat", "dog"] and images[1].size == (6, 4)
    assert images.origin == "2 images, 2 classes; not read: 2 .heic, 1 .txt"
    with pytest.raises(UserError, match="found 2 .heic"):
        read_images(tmp_path / "set" / "owl")


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
    assert read_images(tmp_path / "t-images-idx3-ubyte.gz", asked=Asked(labels=False)).labels is None


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
    with pytest.raises(UserError, match="bad.png: is not an image"):
        decode(bad)
    images = read_images(tmp_path / "s", skip_bad=True)
    assert len(images) == 1 and [p.name for p in images.skipped] == ["bad.png", "cut.png"]
    with pytest.raises(UserError, match="none of the 1"):
        only = tmp_path / "only" / "x"
        only.mkdir(parents=True)
        write(only / "bad.png", b"")
        read_images(tmp_path / "only", skip_bad=True)


def as_folder(folder, pictures):
    for row, (one, label) in enumerate(zip(pictures, LABELS, strict=True)):
        write(folder / label / f"{row}.png", as_bytes(one))
    return folder


def as_files(folder, pictures):
    for row, one in enumerate(pictures):
        write(folder / f"{row}.png", as_bytes(one))
    return [f"{row}.png" for row in range(len(pictures))]


def as_lines(ending):
    def made(folder, pictures):
        names = as_files(folder, pictures)
        path = folder / f"a{ending}"
        with open(path, "w", newline="") as file:
            if ending == ".jsonl":
                file.writelines(json.dumps({"image": n, "label": w}) + "\n" for n, w in zip(names, LABELS, strict=True))
            else:
                writer = csv.writer(file, delimiter="," if ending == ".csv" else "\t")
                writer.writerows([["Filename", "category"], *zip(names, LABELS, strict=True)])
        return path

    return made


def as_parquet(rows_of):
    def made(folder, pictures):
        path = folder / "a.parquet"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"picture": rows_of(folder, pictures), "label": LABELS}), path, row_group_size=3)
        return path

    return made


def data_set(pictures):
    import datasets

    names = ["eel", "dog", "cat"]
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    rows = {"image": pictures, "label": [names.index(label) for label in LABELS]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def as_saved(folder, pictures):
    data_set(pictures).save_to_disk(folder / "saved")
    return folder / "saved"


def as_saved_splits(folder, pictures):
    import datasets

    whole = data_set(pictures)
    datasets.DatasetDict({"other": whole.select([1]), "train": whole}).save_to_disk(
        folder / "saved", num_shards={"other": 1, "train": 3}
    )
    return folder / "saved"


def as_hub_parquet(folder, pictures):
    folder.mkdir(parents=True, exist_ok=True)
    data_set(pictures).to_parquet(folder / "a.parquet", batch_size=2)
    return folder / "a.parquet"


def as_hub_parts(folder, pictures):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    whole = data_set(pictures)
    whole.select(range(3)).to_parquet(folder / "data" / "train-00000-of-00002.parquet")
    whole.select(range(3, 7)).to_parquet(folder / "data" / "train-00001-of-00002.parquet")
    whole.select([0]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder


def shard(rows, pictures, ending):
    told = {"cls": lambda label: label, "json": lambda label: json.dumps({"label": label, "width": 9})}[ending]
    members = {}
    for row in rows:
        members |= {f"{row:04}.png": as_bytes(pictures[row]), f"{row:04}.{ending}": told(LABELS[row]).encode()}
    return members


def as_tar(ending):
    return lambda folder, pictures: tar(folder / "a.tar", shard(range(7), pictures, ending))


def as_shards(folder, pictures):
    tar(folder / "s" / "0.tar", shard(range(3), pictures, "cls"))
    tar(folder / "s" / "1.tar", shard(range(3, 7), pictures, "cls"))
    return folder / "s"


def as_packed_folder(folder, pictures):
    names = [f"./all/{label}/{row}.png" for row, label in enumerate(LABELS)]
    return tar(folder / "a.tar", {name: as_bytes(one) for name, one in zip(names, pictures, strict=True)})


def as_npz(folder, pictures):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "a.npz", images=np.stack([np.asarray(one) for one in pictures]), labels=np.array(LABELS))
    return folder / "a.npz"


def with_paths(folder, pictures):
    return [{"bytes": None, "path": name} for name in as_files(folder, pictures)]


FORMATS = {
    "class folders": as_folder,
    "csv": as_lines(".csv"),
    "tsv": as_lines(".tsv"),
    "jsonl": as_lines(".jsonl"),
    "parquet of bytes": as_parquet(lambda folder, pictures: [as_bytes(one) for one in pictures]),
    "parquet of both": as_parquet(lambda folder, pictures: [{"bytes": as_bytes(p), "path": "x.png"} for p in pictures]),
    "parquet of paths": as_parquet(with_paths),
    "saved data set": as_saved,
    "saved splits": as_saved_splits,
    "data set as Parquet": as_hub_parquet,
    "data set as a folder of Parquet": as_hub_parts,
    "tar with cls": as_tar("cls"),
    "tar with json": as_tar("json"),
    "tar shards": as_shards,
    "tar of folders": as_packed_folder,
    "npz": as_npz,
}


@pytest.mark.parametrize("made", FORMATS.values(), ids=FORMATS)
def test_every_format_gives_the_same_pixels_and_labels(tmp_path, made):
    pictures = noise()
    path = made(tmp_path / "data", pictures)
    assert is_image_data(path)
    images = read_images(path)
    by_label = sorted(range(7), key=lambda row: LABELS[row]) if made is as_folder else range(7)
    assert images.labels == [LABELS[row] for row in by_label] and "7 images, 3 classes" in images.origin
    for row, want in enumerate(by_label):
        assert (np.asarray(images[row]) == np.asarray(pictures[want])).all()
    again = pickle.loads(pickle.dumps(images))  # as a process for another device is given them
    assert (np.asarray(again[6]) == np.asarray(images[6])).all() and again.fingerprint == images.fingerprint
    some = images.take([5, 0])
    assert some.labels == [images.labels[5], images.labels[0]] and (np.asarray(some[1]) == np.asarray(images[0])).all()
    if isinstance(images.source, list):
        assert [picture_at(str(each)) for each in images.source] == images.source
        assert len(set(map(str, images.source))) == 7
    assert images.ids is None or len(set(images.ids)) == 7
    without = read_images(path, asked=Asked(labels=False))
    assert without.labels is None and "7 images, no labels" in without.origin and without.ids == images.ids


@pytest.mark.parametrize("made", [as_folder, as_hub_parquet, as_shards], ids=lambda made: made.__name__)
def test_the_fingerprint_is_of_the_content(tmp_path, made):
    path = made(tmp_path / "data", noise())
    was = read_images(path).fingerprint
    assert read_images(path).fingerprint == was
    moved = path.parent / f"moved{path.suffix}"
    path.rename(moved)
    assert read_images(moved).fingerprint == was
    for file in sorted(p for p in (moved, *moved.rglob("*")) if p.is_file())[-1:]:
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert read_images(moved).fingerprint != was


@pytest.mark.parametrize(
    "table,words",
    [
        ({"path": ["a.png", None]}, ["line 2 lacks its path"]),
        ({"path": ["a.png", "a.png"], "label": ["x", None]}, ["line 2 lacks its label"]),
        ({"image": [{"bytes": None, "path": None}]}, ["line 1 lacks its image"]),
        ({"image": [7]}, ["line 1: its image is no path (7)"]),
        ({"path": ["b.png"]}, ["line 1: b.png: no such file"]),
        ({"picture": ["a.png"]}, ["no column path, image", "(found: picture)"]),
        ({"path": pa.array([], pa.string())}, ["is empty"]),
    ],
)
def test_rows_that_lack_something_are_refused_by_number(tmp_path, table, words):
    picture(tmp_path / "a.png")
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(UserError) as caught:
        read_images(tmp_path / "a.parquet")
    for word in (*words, "a.parquet"):
        assert word in str(caught.value)


def test_truncated_tables_and_cells(tmp_path):
    path = as_hub_parquet(tmp_path, noise())
    whole = path.read_bytes()
    with pytest.raises(UserError, match="b.parquet: is not whole Parquet"):
        read_images(write(tmp_path / "b.parquet", whole[:-100]))
    saved = as_saved(tmp_path, noise())
    arrow = next(saved.glob("*.arrow"))
    write(arrow, arrow.read_bytes()[:-600])
    with pytest.raises(UserError, match="saved: cannot load this dataset"):
        read_images(saved)


def test_a_missing_split_and_a_missing_set(tmp_path, monkeypatch):
    path = as_saved_splits(tmp_path, noise())
    assert len(read_images(path, split="other")) == 1
    with pytest.raises(UserError, match=r"no split 'test'; choose another split \(found: other, train\)"):
        read_images(path, split="test")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nowhere.csv: no such file or folder"):
        read_images(tmp_path / "nowhere.csv")


def test_a_data_set_whose_labels_are_kept_back_has_none(tmp_path):
    import datasets

    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for labels in ([-1, -1, -1], [0, -1, 1]):
        rows = {"image": noise(3), "label": labels}
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(tmp_path / "a.parquet")
        if max(labels) < 0:
            assert read_images(tmp_path / "a.parquet").labels is None
        else:
            with pytest.raises(UserError, match="line 2 lacks its label"):
                read_images(tmp_path / "a.parquet")


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    """As the library gives one after it was downloaded: with files of its own, of which a part is refused."""
    import datasets
    from huggingface_hub import HfApi

    path, load, asked = as_hub_parquet(tmp_path, noise()), datasets.load_dataset, []

    def downloaded(name, config, split):
        asked.append((name, config))
        return load("parquet", data_files=str(path), split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(HfApi, "dataset_info", lambda *args, **options: None)
    monkeypatch.setattr(datasets, "load_dataset", downloaded)
    images = read_images(Path("someone/animals:small"))
    assert images.labels == LABELS and images[0].size == (9, 8) and set(asked) == {("someone/animals", "small")}
    assert picture_at(str(images.source[3])) == images.source[3]
    with pytest.raises(UserError, match="someone/animals: --split train.* is only a part of its files"):
        read_images(Path("someone/animals"), split="train[:3]")


def test_a_parquet_of_several_groups_some_of_whose_pictures_are_files(tmp_path):
    picture(tmp_path / "x.png", size=(5, 3))
    inside = {"bytes": as_bytes(noise(1)[0]), "path": "y.png"}
    rows = [inside, inside, {"bytes": None, "path": "x.png"}, inside, inside]
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet", row_group_size=2)
    images = read_images(tmp_path / "a.parquet")
    assert [images[row].size for row in range(5)] == [(9, 8), (9, 8), (5, 3), (9, 8), (9, 8)] and images.labels is None
    pq.write_table(pa.table({"image": rows[:2]}), tmp_path / "b.parquet", write_statistics=False)
    assert len(read_images(tmp_path / "b.parquet")) == 2


def test_a_table_may_name_any_file_and_ids(tmp_path):
    picture(tmp_path / "x.png", size=(5, 3))
    path = write(tmp_path / "data" / "a.jsonl", '{"id": 7, "path": "../x.png", "label": 3}\n')
    images = read_images(path)
    assert (images.ids, images.labels, images[0].size) == (["7"], ["3"], (5, 3))


def test_texts_beside_paths_are_texts(tmp_path):
    assert not is_image_data(write(tmp_path / "a.csv", "path,text,label\nsrc/a.py,one,x\n"))
    assert is_image_data(write(tmp_path / "b.csv", "path,text,label\na.png,one,x\n"))
    assert not is_image_data(write(tmp_path / "c.csv", "text,label\none,x\n"))
    assert not is_image_data(write(tmp_path / "d.csv", ""))


@pytest.mark.parametrize(
    "made", [as_lines(".csv"), as_parquet(lambda f, p: [b"x", *map(as_bytes, p[1:])]), as_packed_folder]
)
def test_bad_pictures_are_skipped_in_every_source(tmp_path, made):
    path = made(tmp_path / "data", noise())
    if path.suffix == ".csv":
        write(tmp_path / "data" / "0.png", b"x")
        (tmp_path / "data" / "6.png").unlink()
    if path.suffix == ".tar":
        broken = bytearray(path.read_bytes())
        start = read_images(path).source[0].start
        broken[start : start + 4] = b"none"
        write(path, bytes(broken))
    images = read_images(path, skip_bad=True)
    gone = [0, 6] if path.suffix == ".csv" else [0]
    assert images.labels == [label for row, label in enumerate(LABELS) if row not in gone]
    assert len(images.skipped) == len(gone) and str(path.parent) in str(images.skipped[0])
