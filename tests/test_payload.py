"""Columns of a table that are kept beside what is embedded: as they stand there, and told in what is found."""

import csv
import datetime
import decimal
import json
import os
import re
import signal

import apart
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_encode import contents

from retrieval.artifact import staging_folder
from retrieval.data import Asked, TextFile, Texts, read_texts, scan_texts
from retrieval.embed import embed
from retrieval.encode import Encoding
from retrieval.encoder import Encoder
from retrieval.errors import UserError
from retrieval.images import read_images
from retrieval.store import open_store
from retrieval.store.journal import rows_left

KEPT = ("price", "url")
HEADER = ("id", "title", "text", "price", "url", "picture")
SHOP = [  # what a table of lines keeps of each row stands in its price and url
    ("a", "Jug", "A jug of clay", "12.50", "https://shop/a?x=1,2"),
    ("b", "Cup", "A cup\nwith a lid", "", " https://shop/ü "),
    ("c", "Bowl", "A blue bowl", "3", 'say "c"'),
]


def shop(path, rows=SHOP, header=HEADER):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(
            [header, *((*row, f"{row[0]}.png") for row in rows)]
        )
    return path


def prices(count):
    return [(f"i{at}", "t", f"w{at % 97} w{at}", f"{at}.00", f"u{at}") for at in range(count)]


@pytest.fixture(scope="module")
def words():
    """A bag of words, in no time."""
    from faults import tiny_encoder

    return tiny_encoder()


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_columns_of_lines_are_kept_as_they_stand_there(words, tmp_path, ending):
    data = scan_texts(shop(tmp_path / f"shop{ending}"), 2, asked=Asked(payload=("url", "price", "url")))
    assert isinstance(data, TextFile) and "columns text, id, price, url; not used: title, picture" in data.origin
    store = embed(words, data, tmp_path / "s", shard_rows=2)
    rows = store.load()
    assert store.manifest["columns"] == ["payload/text", "payload/price", "payload/url"]
    assert list(zip(rows.payload["price"], rows.payload["url"], strict=True)) == [row[3:] for row in SHOP]
    plain = embed(words, scan_texts(tmp_path / f"shop{ending}", 2), tmp_path / "plain", shard_rows=2)
    assert (plain.load().embeddings == rows.embeddings).all() and list(plain.load().payload) == ["text"]


def test_values_of_json_are_kept_as_text(words, tmp_path):
    rows = [
        {"text": "a", "price": 12.5, "tags": ["grün", "rot"], "sold": True},
        {"text": "b", "price": None, "tags": {"size": 3}, "sold": False},
        {"text": "c", "price": 10**20},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = scan_texts(tmp_path / "a.jsonl", 2, asked=Asked(payload=("price", "tags", "sold")))
    assert embed(words, data, tmp_path / "s", shard_rows=2).load().payload == {
        "text": ["a", "b", "c"],
        "price": ["12.5", "", "100000000000000000000"],
        "tags": ['["grün", "rot"]', '{"size": 3}', ""],
        "sold": ["true", "false", ""],
    }


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_values_of_tables_are_kept_as_text(words, tmp_path, kind):
    columns = {
        "text": ["a", "b"],
        "price": [decimal.Decimal("12.50"), None],
        "day": [datetime.date(2026, 1, 2), None],
        "stock": [7, 0],
    }
    path = tmp_path / ("set" if kind == "saved" else "set.parquet")
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    if kind == "saved":
        datasets.Dataset(pa.table(columns)).save_to_disk(path)
    data = scan_texts(path, 4096, asked=Asked(payload=("stock", "price", "day")))
    assert embed(words, data, tmp_path / "s").load().payload == {
        "text": ["a", "b"],
        "day": ["2026-01-02", ""],
        "price": ["12.50", ""],
        "stock": ["7", "0"],
    }


def test_many_texts_in_memory_are_kept_in_a_file(tmp_path, monkeypatch):
    """As a table's are, where they are large."""
    monkeypatch.setattr("retrieval.data.texts.Collected.__init__.__defaults__", (1,))
    count = 9000
    columns = {"text": [f"t{at}" for at in range(count)], "price": list(range(count))}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    data = read_texts(tmp_path / "a.parquet", Asked(payload=("price",)))
    assert not isinstance(data.payload["price"], list)
    assert data.part(8998, 9000).payload == {"price": ["8998", "8999"]} == data.take([8998, 8999]).payload


def test_columns_beside_pictures_are_kept(tmp_path, pictures):
    from retrieval.train.vision import network

    for name, file in zip("abc", sorted(pictures.rglob("*.png"))[::70], strict=False):
        (tmp_path / f"{name}.png").write_bytes(file.read_bytes())
    (tmp_path / "c.png").write_text("no picture")
    asked = Asked(image="picture", payload=("title", *KEPT))
    data = read_images(shop(tmp_path / "shop.csv"), asked=asked, captions=True, skip_bad=True)
    assert "columns picture, id, text, price, title, url" in data.origin and len(data.skipped) == 1
    encoder = Encoder(network("small", 8, "cpu", 0).eval(), "small")
    rows = embed(encoder, data, tmp_path / "s", shard_rows=1).load()
    assert rows.payload == {
        "path": [str(tmp_path / f"{name}.png") for name in "ab"],
        "caption": ["A jug of clay", "A cup\nwith a lid"],
        "price": ["12.50", ""],
        "title": ["Jug", "Cup"],
        "url": ["https://shop/a?x=1,2", " https://shop/ü "],
    }
    again = read_images(tmp_path / "shop.csv", asked=Asked(image="picture", payload=KEPT), captions=True, skip_bad=True)
    assert again.fingerprint != data.fingerprint


def test_answers_are_kept_beside_questions(words, tmp_path):
    """Of pairs the anchors are embedded; what answers them is what a search should tell."""
    table = {"question": ["why", "how"], "answer": ["because", "so"]}
    pq.write_table(pa.table(table), tmp_path / "faq.parquet")
    (tmp_path / "faq.csv").write_text("question,answer\nwhy,because\nhow,so\n")
    for number, name in enumerate(("faq.csv", "faq.parquet")):
        data = scan_texts(tmp_path / name, 4096, asked=Asked(payload=("answer",)))
        rows = embed(words, data, tmp_path / str(number)).load()
        assert rows.payload == {"text": ["why", "how"], "answer": ["because", "so"]}


def test_a_search_tells_them(tiny, tmp_path, run_cli):
    quick = ["--encoder", tiny, "--device", "cpu"]
    kept = [word for name in KEPT for word in ("--payload", name)]
    words = ["embed", *quick, "--data", shop(tmp_path / "shop.csv"), *kept, "--output", tmp_path / "s"]
    run_cli(*words)
    assert "is already what this command makes" in run_cli(*words).stderr
    run_cli("index", "build", tmp_path / "s", "--output", tmp_path / "i")
    found = run_cli("search", tmp_path / "i", *quick, "--query", "A jug of clay", "-k", 1, "--json")
    (hit,) = json.loads(found.stdout)["results"][0]["hits"]
    assert (hit["id"], hit["text"], hit["price"], hit["url"]) == ("a", *SHOP[0][2:])
    shown = run_cli("search", tmp_path / "i", *quick, "--query", "A jug of clay", "-k", 1).stdout
    assert shown.rstrip().endswith(f"{SHOP[0][2].strip()}  price: {SHOP[0][3]}  url: {SHOP[0][4]}")
    newer = shop(tmp_path / "newer.csv", [("d", *SHOP[0][1:])])
    words = ["embed", *quick, "--data", newer, "--append", "--output", tmp_path / "s"]
    assert "of the new rows: payload/text; make them agree" in run_cli(*words, code=2).stderr
    run_cli(*words, *reversed([f"--payload={name}" for name in KEPT]))
    assert open_store(tmp_path / "s").load().payload["url"] == [row[4] for row in (*SHOP, SHOP[0])]


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("--payload link", r"--payload link: .*shop.csv has no such column \(found: id, title, text, "),
        ("--payload price --payload text", "--payload text: is the text of each row of .*, which is kept anyway"),
        ("--payload id", "--payload id: is the id of each row"),
        ("--payload title --label title", "--payload title: is the label of each row"),
        ("--payload text --text title", "--payload text: results have 'text' of their own; rename the column"),
        ("--payload picture --image picture", "--payload picture: is the picture of each row"),
        ("--payload text --image picture", "--payload text: is the caption of each row"),
        ("--payload id --id title --image picture", "--payload id: results have 'id' of their own"),
        ("--payload a/b", "--payload a/b: no store can have a column of this name; rename it in"),
    ],
)
def test_columns_that_cannot_be_kept(tmp_path, run_cli, flags, why):
    """Said in a line before an encoder is loaded: there is none here."""
    path = shop(tmp_path / "shop.csv", [(*row, "x") for row in SHOP], (*HEADER[:5], "a/b", "picture"))
    words = ["embed", "--encoder", "none", "--data", path, "--output", tmp_path / "s", *flags.split()]
    said = run_cli(*words, code=2).stderr
    assert re.search(why, said) and said.count("\n") == 1


def test_what_has_no_columns_keeps_none(tmp_path, run_cli, pictures, words):
    words_of = ["embed", "--encoder", "none", "--output", tmp_path / "x", "--payload", "price", "--data"]
    embed(words, Texts({"text": ["a"]}), tmp_path / "s")
    for path in (pictures, tmp_path / "s"):
        assert f"--payload price: {path} has no columns; give a table" in run_cli(*words_of, path, code=2).stderr
    (tmp_path / "a.txt").write_text("a\nb\n")
    assert "--payload price: " in run_cli(*words_of, tmp_path / "a.txt", code=2).stderr
    (tmp_path / "a.jsonl").write_text(json.dumps({"query": "a", "pos": ["b", "c"], "price": 1}) + "\n")
    assert "has several texts; write a row a text" in run_cli(*words_of, tmp_path / "a.jsonl", code=2).stderr


def test_what_is_no_text_is_not_kept(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "raw": [b"\xff"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="line 1: its column 'raw' holds pictures or other bytes"):
        read_texts(tmp_path / "a.parquet", Asked(payload=("raw",)))


class Killed(Encoding):
    """Ends its process by SIGKILL at the third shard."""

    left = 2

    def start(self, *words):
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return super().start(*words)


def embed_until_killed(path, output):
    from faults import tiny_encoder

    import retrieval.embed

    retrieval.embed.Encoding = Killed
    embed(tiny_encoder(), scan_texts(path, 10, asked=Asked(payload=KEPT)), output, shard_rows=10)


def test_after_a_kill_the_store_is_that_of_an_unbroken_run(words, tmp_path):
    path, kept = shop(tmp_path / "shop.csv", prices(35)), []
    data = scan_texts(path, 10, asked=Asked(payload=KEPT))
    embed(words, data, tmp_path / "unbroken", shard_rows=10)
    for name in ("same", "other"):
        assert apart.begin(embed_until_killed, path, tmp_path / name).end().returncode == -signal.SIGKILL
    written = rows_left(staging_folder(tmp_path / "same"))
    assert written and not (tmp_path / "same").exists()
    embed(words, data, tmp_path / "same", shard_rows=10, resumed=kept.append)
    assert kept == [written] and contents(tmp_path / "same") == contents(tmp_path / "unbroken")
    fewer = scan_texts(path, 10, asked=Asked(payload=("price",)))
    assert list(embed(words, fewer, tmp_path / "other", shard_rows=10, resumed=kept.append).load().payload) == ["text", "price"]  # fmt: skip
    assert kept[1:] == [0]


def test_what_is_kept_is_part_of_the_data():
    """In memory, as of a table in Parquet or from Python; without it they are what they were before anything could be kept."""
    columns, price = {"text": ["a", "b"]}, ["1", "2"]
    given = [{}, {"price": price}, {"price": price[::-1]}, {"cost": price}, {"price": price, "cost": price}]
    assert len({Texts(columns, payload=payload).fingerprint for payload in given}) == len(given)
    with pytest.raises(UserError, match="'text' is what is embedded"):
        Texts(columns, payload={"text": price})
    with pytest.raises(UserError, match="2 rows, 1 price"):
        Texts(columns, payload={"price": ["1"]})
