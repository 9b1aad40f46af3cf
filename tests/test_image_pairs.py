"""Pictures with captions and pairs of pictures, from every kind of source; what is one picture or one text."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from some_pictures import as_bytes, noise, tar, write

from retrieval.data import Asked
from retrieval.errors import UserError
from retrieval.images import Images, Pairs, read_images, read_pairs

WORDS = [f"picture number {row}" for row in range(7)]


def files(folder, pictures):
    for row, one in enumerate(pictures):
        write(folder / f"{row}.png", as_bytes(one))
    return folder


def beside(folder, pictures):
    for row, words in enumerate(WORDS):
        write(files(folder, pictures) / f"{row}.txt", f"{words}\n")
    return folder


def table(header, ending=".csv"):
    def made(folder, pictures):
        lines = [header, *(f"{row}.png,{words}" for row, words in enumerate(WORDS))]
        return write(
            files(folder, pictures) / f"a{ending}", "\n".join(lines).replace(",", "\t" if ending == ".tsv" else ",")
        )

    return made


def lines(folder, pictures):
    rows = [{"file": f"{row}.png", "sentence": words} for row, words in enumerate(WORDS)]
    return write(files(folder, pictures) / "a.jsonl", "\n".join(map(json.dumps, rows)))


def saved(folder, pictures):
    import datasets

    kinds = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    datasets.Dataset.from_dict({"image": pictures, "caption": WORDS}, features=kinds).save_to_disk(folder)
    return folder


def parquet(folder, pictures):
    folder.mkdir(parents=True)
    rows = [{"bytes": as_bytes(one), "path": None} for one in pictures]
    pq.write_table(pa.table({"anchor": rows, "positive": WORDS}), folder / "a.parquet", row_group_size=2)
    return folder / "a.parquet"


def packed(ending):
    def made(folder, pictures):
        told = (lambda words: json.dumps({"caption": words})) if ending == "json" else str
        members = {}
        for row, words in enumerate(WORDS):
            members |= {f"{row}.png": as_bytes(pictures[row]), f"{row}.{ending}": told(words).encode()}
        return tar(folder / "a.tar", members)

    return made


SOURCES = {
    "folder": beside,
    "image,caption": table("image,caption"),
    "path,text": table("Path,Text"),
    "filename,title": table("filename,title", ".tsv"),
    "image_path,description": table("image_path,description"),
    "anchor,positive": table("anchor,positive"),
    "jsonl": lines,
    "saved": saved,
    "parquet": parquet,
    "tar, txt": packed("txt"),
    "tar, caption": packed("caption"),
    "tar, json": packed("json"),
}


@pytest.mark.parametrize("made", SOURCES.values(), ids=SOURCES)
def test_captions_from_every_source(tmp_path, made):
    pictures = noise()
    pairs = read_pairs(made(tmp_path / "data", pictures))
    anchors = pairs.columns["anchor"]
    assert list(pairs.columns) == ["anchor", "positive"] and pairs.columns["positive"] == WORDS and len(pairs) == 7
    assert all((np.asarray(anchors[row]) == np.asarray(pictures[row])).all() for row in range(7))
    assert "7 pairs" in pairs.origin
    some = pairs.take([6, 2]).part(1, 2)
    assert some.columns["positive"] == [WORDS[2]]
    assert (np.asarray(some.columns["anchor"][0]) == np.asarray(pictures[2])).all()


@pytest.mark.parametrize("made", [made for name, made in SOURCES.items() if name not in ("anchor,positive", "parquet")])
def test_captions_to_show_from_every_source(tmp_path, made):
    data = made(tmp_path / "data", noise())
    images = read_images(data, captions=True)
    assert images.captions == WORDS and "not read" not in images.origin
    assert read_images(data).captions is None and images.fingerprint != read_images(data).fingerprint


def test_captions_of_some_pictures(tmp_path):
    folder = files(tmp_path, noise())
    write(folder / "2.txt", "a dog ")
    write(folder / "notes.txt", "of all")
    images = read_images(folder, captions=True)
    assert images.captions == ["", "", "a dog", "", "", "", ""]
    assert images.origin == "7 images, no labels, 1 captions; not read: 1 .txt"
    assert images.take([2, 0]).captions == ["a dog", ""]
    (folder / "2.txt").unlink()
    assert read_images(folder, captions=True).captions is None
    (folder / "2.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="2.txt: is not UTF-8"):
        read_images(folder, captions=True)


def test_a_picture_in_several_rows_needs_ids(tmp_path):
    """As with COCO, a row a caption. Training and pairs take it as it is."""
    files(tmp_path, noise())
    path = write(tmp_path / "a.csv", "image,caption,key\n0.png,a,x\n1.png,b,y\n0.png,c,y\n")
    remedy = "keep one row a picture, or name a column of ids by --id"
    with pytest.raises(UserError, match=f"a.csv: line 4: picture '0.png' stands in line 2 already, .* {remedy}"):
        read_images(path, captions=True)
    with pytest.raises(UserError, match="a.csv: line 4: key 'y' stands in line 3 already; ids must be unique"):
        read_images(path, captions=True, asked=Asked(id="key"))
    assert read_images(path, captions=True, asked=Asked(id="caption")).ids == ["a", "b", "c"]
    assert len(read_images(path)) == len(read_pairs(path)) == 3


def test_pairs_of_pictures_share_codes_from_side_to_side(tmp_path):
    files(tmp_path, noise())
    path = write(tmp_path / "a.csv", "id,image1,image2\na,0.png,1.png\nb,1.png,2.png\nc,./0.png,3.png\n")
    pairs = read_pairs(path)
    one, two = pairs.identities["anchor"], pairs.identities["positive"]
    assert isinstance(pairs.columns["positive"], Images) and pairs.ids == ["a", "b", "c"]
    assert one[0] == one[2] != one[1] and two[0] == one[1] and len({*one, *two}) == 4


def test_negatives_may_lack_where_they_are_texts(tmp_path):
    files(tmp_path, noise())
    text = "image,caption,negative_1,negative_2,source\n0.png,a,b,,web\n1.png,b,,,web\n"
    pairs = read_pairs(write(tmp_path / "a.csv", text))
    assert pairs.columns["negative_1"] == ["b", ""] and pairs.columns["negative_2"] == ["", ""]
    assert pairs.identities["negative_1"][0] == pairs.identities["positive"][1]
    assert pairs.identities["negative_1"][1] == -1 and "not used: source" in pairs.origin
    assert list(read_pairs(tmp_path / "a.csv", asked=Asked(negatives=1)).columns)[2:] == ["negative_1"]
    pictures = read_pairs(write(tmp_path / "b.csv", "image,caption,negative\n0.png,a,3.png\n1.png,b,4.png\n"))
    assert pictures.columns["negative_1"][1].size == (9, 8)
    with pytest.raises(UserError, match="line 3 lacks its negative"):
        read_pairs(write(tmp_path / "c.csv", "image,caption,negative\n0.png,a,3.png\n1.png,b,\n"))


def test_columns_by_name(tmp_path):
    files(tmp_path, noise())
    path = write(tmp_path / "a.csv", "picture,left,right,caption\nx,0.png,one,two\n")
    asked = Asked(anchor="right", positive="left", negative=("caption",))
    pairs = read_pairs(path, asked=asked)
    assert pairs.columns["anchor"] == ["one"] and pairs.columns["positive"][0].size == (9, 8)
    assert pairs.columns["negative_1"] == ["two"]
    with pytest.raises(UserError, match="--positive wrong: .*a.csv has no such column"):
        read_pairs(path, asked=Asked(anchor="right", positive="wrong"))


def test_several_captions_are_several_rows(tmp_path):
    import datasets

    kinds = datasets.Features({"image": datasets.Image(), "captions": datasets.Sequence(datasets.Value("string"))})
    rows = {"image": noise(3), "captions": [["a", "b"], ["c"], ["d", "a"]]}
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(tmp_path / "set")
    pairs = read_pairs(tmp_path / "set")
    assert pairs.columns["positive"] == ["a", "b", "c", "d", "a"]
    one, two = pairs.identities["anchor"], pairs.identities["positive"]
    assert one[0] == one[1] != one[2] and one[3] == one[4] and two[0] == two[4]
    told = json.dumps({"captions": ["a", "b"]}).encode()
    shard = tar(tmp_path / "a.tar", {"1.png": as_bytes(noise(1)[0]), "1.json": told})
    assert read_pairs(shard).columns["positive"] == ["a", "b"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "x", "y", "a"])), min_size=1, max_size=12))
def test_codes_are_equal_for_what_is_equal(rows):
    columns = {
        "anchor": [f"t{a}" for a, _ in rows],
        "positive": [f"t{a}" for a, _ in rows],
        "negative_1": [b for _, b in rows],
    }
    found = Pairs(columns, "").identities
    items = [(name, row) for name in columns for row in range(len(rows))]
    for n, i in items:
        assert (found[n][i] == -1) == (columns[n][i] == "")
        for m, j in items:
            assert (found[n][i] == found[m][j]) == (columns[n][i] == columns[m][j])


@pytest.mark.parametrize(
    "name,content,words",
    [
        ("a.csv", "image,label\n0.png,x\n", ["no columns image and caption", "found: image, label"]),
        ("a.csv", "anchor,positive\none,two\n", ["anchor and positive are texts both", "train text"]),
        ("a.csv", "image,caption\n", ["is empty"]),
        ("a.csv", "", ["a.csv"]),
        ("a.csv", "image,caption\n0.png,a\n9.png,b\n", ["line 3: 9.png: no such file"]),
        ("a.csv", "image,caption\n0.png,a\n0.png, \n", ["line 3 lacks its caption"]),
        ("a.csv", "anchor,positive\n0.png,a\n0.png,1.png\n", ["line 3: its positive is a picture"]),
        ("a.csv", "anchor,positive\n0.png,a\nwords,b\n", ["line 3: words: no such file"]),
        ("a.jsonl", '{"image": "0.png", "captions": []}\n', ["line 1 lacks its captions"]),
        ("a.jsonl", '{"image": "0.png", "captions": ["a", ""]}\n', ["line 1 lacks its captions"]),
        ("a.txt", "words\n", ["a.txt: no pairs with pictures"]),
    ],
)
def test_what_is_no_pair_is_refused(tmp_path, name, content, words):
    files(tmp_path, noise())
    with pytest.raises(UserError) as caught:
        read_pairs(write(tmp_path / name, content))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_a_picture_without_a_caption_is_refused(tmp_path):
    folder = beside(tmp_path / "data", noise())
    (folder / "3.txt").unlink()
    with pytest.raises(UserError, match="3.png: has no caption beside it; write 3.txt"):
        read_pairs(folder)
    path = tar(tmp_path / "a.tar", {"1.png": as_bytes(Image.new("L", (2, 2))), "2.png": b"", "1.txt": b"a"})
    with pytest.raises(UserError, match="a.tar/2.png: has no caption beside it"):
        read_pairs(path)
    with pytest.raises(UserError, match="no such file or folder"):
        read_pairs(tmp_path / "none.tar")
    with pytest.raises(UserError, match="--anchor x"):
        read_pairs(path, asked=Asked(anchor="x", positive="y"))


def test_lists_of_negatives(tmp_path):
    """Of texts some rows may have fewer; of pictures none."""
    files(tmp_path, noise(3))

    def read(*negatives, **asked):
        rows = [{"image": f"{row}.png", "caption": ["a", "b"], "negatives": each} for row, each in enumerate(negatives)]
        write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
        return read_pairs(tmp_path / "a.jsonl", asked=Asked(**asked))

    found = read(["x", "y"], [], "z")
    assert found.columns["negative_1"] == ["x", "x", "", "", "z", "z"]
    assert found.columns["negative_2"] == ["y", "y", "", "", "", ""]
    assert found.origin == "6 pairs, columns image, caption, negatives"
    assert list(read(["x", "y"], ["z"], negatives=1).columns) == ["anchor", "positive", "negative_1"]
    pictures = read(["1.png", "2.png"], ["0.png", "2.png"])
    assert [str(each.name) for each in pictures.columns["negative_2"].source] == ["2.png"] * 4
    for negatives in (["1.png", "2.png"], ["0.png"]), (["1.png"], [["0.png"]]), (["x"], [["y"]]), (["x"], {"y": "z"}):
        with pytest.raises(UserError, match="line 2"):
            read(*negatives)


@pytest.mark.parametrize("named", [False, True])
def test_files_of_one_size_and_time_that_change_places(tmp_path, named):
    """As a resumed training would have it: the captions stay, and stand beside other pictures."""
    folder = tmp_path / "set"
    for name in ("a/1.bmp", "b/1.bmp"):
        os.utime(write(folder / name, name.encode()), (1.7e9, 1.7e9))

    def mark(*names, of=folder):
        rows = [{"image": name, "caption": f"{at}", "id": at} for at, name in enumerate(names)]
        path = write(of / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        return (read_images(path) if named else read_pairs(path).columns["anchor"]).fingerprint

    was = mark("a/1.bmp", "b/1.bmp")
    assert mark("a/1.bmp", "b/1.bmp") == was != mark("b/1.bmp", "a/1.bmp")
    assert mark("a/1.bmp", "b/1.bmp", of=folder.rename(tmp_path / "moved")) == was
