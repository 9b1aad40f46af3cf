"""Columns that are called otherwise: named in each command that reads a table, and no word is taken for another in silence."""

import csv
import json
import shlex
from functools import partial

import pytest
from test_cli import read_json

from retrieval.cli import cli
from retrieval.cli.columns import as_words, several_training_data
from retrieval.cli.held import read_held
from retrieval.data import Asked, read_texts
from retrieval.encoder import MINILM
from retrieval.errors import UserError
from retrieval.images import is_image_data, read_images, read_pairs
from retrieval.store import open_store


def renamed(path, source, names, which=slice(None)):
    """Rows of the table `source` with other names in its header, and ids."""
    with open(source, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:][which]
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("nr", *names), *((f"n{at}", *row) for at, row in enumerate(rows))])
    return path


@pytest.fixture
def odd(texts, tmp_path):
    return renamed(tmp_path / "odd.csv", texts, ("wortlaut", "klasse"))


@pytest.fixture
def odd_pictures(pictures, tmp_path):
    path = tmp_path / "pictures.csv"
    files = sorted(pictures.glob("[0-2]/*.png"))
    rows = [(file.stem + file.parent.name, file, file.parent.name, "a digit") for file in files]
    with open(path, "w", newline="") as out:
        csv.writer(out).writerows([("nr", "bild", "klasse", "text"), *rows])
    return path


def test_of_several_data_sets_the_least_score_is_for_those_that_need_it(tmp_path):
    graded, nli, pairs = (tmp_path / name for name in ("graded.csv", "nli.csv", "pairs.csv"))
    graded.write_text("sentence1,sentence2,score\na,b,4.5\nc,d,1\n")
    nli.write_text("premise,hypothesis,label\na,b,entailment\na,c,contradiction\na,d,neutral\n")
    pairs.write_text("anchor,positive\na,b\nc,d\n")
    flags = {"min_score": 4.0, "negatives": 7, "split": "train"}
    read = several_training_data([nli, graded, pairs], flags)
    assert [{name: list(column) for name, column in data.columns.items()} for data in read] == [
        {"anchor": ["a"], "positive": ["b"], "negative_1": ["c"]},
        {"anchor": ["a"], "positive": ["b"]},
        {"anchor": ["a", "c"], "positive": ["b", "d"]},
    ]
    with pytest.raises(UserError, match="--min-score: no --data has pairs with other scores than 0 and 1"):
        several_training_data([nli, pairs], flags)
    with pytest.raises(UserError, match="graded.csv: pairs are scored from 1 to 4.5; say .* --min-score"):
        several_training_data([nli, graded], flags | {"min_score": None})
    named = flags | {"min_score": None, "anchor": "premise", "positive": "hypothesis"}
    with pytest.raises(UserError, match="--anchor premise: .*pairs.csv has no .* every --data"):
        several_training_data([nli, pairs], named)
    with pytest.raises(UserError, match="the highest is 1$"):
        several_training_data([nli], flags)
    with pytest.raises(UserError, match="pairs.csv has no scored pairs"):
        several_training_data([pairs], flags)


TEXTS = ["--text", "wortlaut", "--label", "klasse"]
PICTURES = ["--image", "bild", "--label", "klasse"]


def test_texts_are_embedded_from_the_columns_that_are_named(odd, texts, run_cli, tmp_path, tiny):
    words = ["embed", "--encoder", tiny, "--device", "cpu", "--data"]
    assert "name it by --text" in run_cli(*words, odd, "--output", tmp_path / "x", code=2).stderr
    run_cli(*words, odd, *TEXTS, "--id", "nr", "--output", tmp_path / "named")
    run_cli(*words, texts, "--output", tmp_path / "usual")
    named, usual = open_store(tmp_path / "named"), open_store(tmp_path / "usual")
    rows, same = named.load(), usual.load()
    assert (rows.embeddings == same.embeddings).all() and rows.labels == same.labels
    assert list(rows.ids[:2]) == ["n0", "n1"]
    error = run_cli(*words, odd, "--text", "nothing", "--output", tmp_path / "x", code=2).stderr
    assert "--text nothing" in error and "found: nr, wortlaut, klasse" in error
    assert "--image, --text" in run_cli(*words, odd, *TEXTS, "--image", "nr", "--output", tmp_path / "x", code=2).stderr
    assert "has no columns" in run_cli(*words, tmp_path / "named", "--id", "nr", "--output", tmp_path / "x", code=2).stderr  # fmt: skip


def test_the_other_side_of_pairs_is_embedded_by_its_name(pairs_file, run_cli, tmp_path, tiny):
    run_cli("embed", "--encoder", tiny, "--device", "cpu", "--data", pairs_file, "--text", "positive", "--output", tmp_path / "s")  # fmt: skip
    shown = [text for block in open_store(tmp_path / "s") for text in block.payload["text"]]
    assert shown == list(read_texts(pairs_file).columns["positive"])


def test_pictures_are_read_from_the_columns_that_are_named(odd_pictures, pictures, run_cli, tmp_path):
    asked = Asked(image="bild", label="klasse", id="nr")
    found = read_images(odd_pictures, asked=asked)
    assert len(found) == 60 and found.labels[0] == "0" and found.ids[0].endswith("0") and is_image_data(odd_pictures, asked=asked)  # fmt: skip
    assert not is_image_data(odd_pictures) and not is_image_data(pictures, asked=Asked(text="x"))
    with pytest.raises(UserError, match="or by --image"):
        read_images(odd_pictures)
    with pytest.raises(UserError, match="--label x: .* has no such column"):
        read_images(odd_pictures, asked=Asked(image="bild", label="x"))
    with pytest.raises(UserError, match="--image bild: .* has no columns"):
        read_images(pictures, asked=asked)
    assert len(read_images(pictures, asked=Asked(image="bild", optional=True))) == 200
    command = ["train", "image", "--data", odd_pictures, "--model", "small", "--steps", 2, "--batch-size", 8, "--device", "cpu"]  # fmt: skip
    told = run_cli(*command, *PICTURES, "--eval-data", pictures, "--output", tmp_path / "run")
    assert "columns bild, klasse" in told.stderr and "map@r" in told.stdout


def test_what_is_judged_by_need_not_have_the_columns(odd, texts, run_cli, tmp_path, tiny):
    command = ["train", "text", "--data", odd, "--model", tiny, "--steps", 2, "--batch-size", 8, "--no-general"]
    run_cli(*command, *TEXTS, "--eval-data", texts, "--device", "cpu", "--output", tmp_path / "a")
    run_cli(*command, *TEXTS, "--eval-data", odd, "--device", "cpu", "--output", tmp_path / "b")
    one, other = (json.loads((tmp_path / name / "run" / "metrics.json").read_text()) for name in "ab")
    assert one["held-out"]["metrics"] == other["held-out"]["metrics"]


def test_optional_columns_count_where_they_are(odd, texts, pairs_file):
    asked = Asked(text="wortlaut", label="klasse", optional=True)
    assert read_texts(odd, asked).labels == read_texts(texts, asked).labels
    assert read_texts(pairs_file, asked).is_pairs
    with pytest.raises(UserError, match="--text wortlaut"):
        read_texts(texts, Asked(text="wortlaut"))
    pairs = Asked(anchor="a", positive="b", negative=("c",), optional=True)
    assert pairs.of(["a", "c"]).anchor is None and pairs.of(["a", "c"]).negative == ()
    assert pairs.of(["b", "a"]).positive == "b" and pairs.of(["b", "a", "c"]).negative == ("c",)


@pytest.mark.slow
def test_a_sweep_tells_a_command_that_names_them_too(odd_pictures, texts, run_cli, tmp_path, tiny):
    words = ["--kappa", "2", "--temperature", "0.1", "--seeds", 1, "--steps", 2, "--device", "cpu"]
    sweep = partial(run_cli, "sweep", *words)
    train = renamed(tmp_path / "train.csv", texts, ("wortlaut", "klasse"), slice(0, None, 2))
    held = renamed(tmp_path / "held.csv", texts, ("text", "label"), slice(1, None, 2))
    told = read_json(
        sweep("--data", train, *TEXTS, "--held-out", held, "--model", tiny, "--output", tmp_path / "s", "--json")
    )
    command = shlex.split(told["recommended"]["command"])
    assert command[command.index("--text") + 1] == "wortlaut" and command[command.index("--label") + 1] == "klasse"
    run_cli(*command[1:-1], tmp_path / "run", "--no-general", "--device", "cpu")
    told = read_json(
        sweep("--data", odd_pictures, *PICTURES, "--model", "small", "--whole", "--output", tmp_path / "p", "--json")
    )
    assert shlex.join(map(str, PICTURES)) in told["recommended"]["command"]
    error = sweep(
        "--data", odd_pictures, *PICTURES, "--score", "nr", "--model", "small", "--output", tmp_path / "x", code=2
    )
    assert "--score: is for texts" in error.stderr


@pytest.fixture
def hub(pictures, tmp_path):
    """A folder of Parquet as the hub has it, of pictures and their classes under names of their own."""
    import datasets

    files = sorted(map(str, pictures.glob("[0-2]/*.png")))
    kinds = datasets.Features({"bild": datasets.Image(), "art": datasets.Value("string")})
    whole = datasets.Dataset.from_dict({"bild": files, "art": [file[-10] for file in files]}, features=kinds)
    test = range(0, 60, 6)
    train = [row for row in range(60) if row not in test]
    for name, rows in {
        "train-00000-of-00002": train[:25],
        "train-00001-of-00002": train[25:],
        "test-00000-of-00001": test,
    }.items():
        whole.select(rows).to_parquet(tmp_path / "hub" / f"{name}.parquet")
    return tmp_path / "hub"


def test_a_column_of_pictures_is_no_text(hub, run_cli, tmp_path, tiny):
    embed = ["embed", "--encoder", tiny, "--device", "cpu", "--output", tmp_path / "x", "--data"]
    assert "its column 'bild' holds pictures or other bytes" in run_cli(*embed, hub, "--text", "bild", code=2).stderr
    train = ["train", "text", "--model", tiny, "--head", "--output", tmp_path / "x", "--data", hub]
    assert "its column 'bild' holds" in run_cli(*train, "--text", "art", "--label", "bild", code=2).stderr
    for flag in ("--label", "--id"):
        error = run_cli(*embed, hub, "--image", "bild", flag, "bild", code=2).stderr
        assert f"{flag} bild: is the column of the pictures" in error
    run_cli(*train[:2], "--model", tiny, "--data", pair_of_dates(tmp_path), "--label", "day", "--steps", 2, "--no-general", "--output", tmp_path / "y")  # fmt: skip


def pair_of_dates(folder):
    """Classes that are days: words all the same."""
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    days = [datetime.date(2026, 1, 1 + row % 2) for row in range(8)]
    pq.write_table(pa.table({"text": [f"text {row}" for row in range(8)], "day": days}), folder / "days.parquet")
    assert set(read_texts(folder / "days.parquet", Asked(label="day")).labels) == {"2026-01-01", "2026-01-02"}
    return folder / "days.parquet"


def test_what_is_not_used_and_which_split_is_told(hub, run_cli, tmp_path):
    found = read_images(hub)
    assert len(found) == 50 and found.origin.endswith("columns bild; not used: art; split train (also there: test)")
    command = ["train", "image", "--data", hub, "--model", "small", "--steps", 2, "--device", "cpu"]
    assert "no labels, so two views of each picture" in run_cli(*command, "--output", tmp_path / "a").stderr
    told = run_cli(*command, "--label", "art", "--eval-data", hub, "--output", tmp_path / "b")
    assert "10 images" in told.stderr and "split test (also there: train)" in told.stderr
    assert "knn@20" not in told.stdout and "10 queries are few" in told.stdout


def test_a_part_that_is_missing_is_told(hub, run_cli, tmp_path):
    (hub / "train-00001-of-00002.parquet").unlink()
    for read in (read_images, read_texts):
        with pytest.raises(UserError, match=r"train-00001-of-00002.parquet is missing \(1 of 2 files\)"):
            read(hub)
    assert len(read_images(hub, split="test")) == 10


def test_parts_of_other_columns_are_told(hub, texts):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"]}), hub / "train-00001-of-00002.parquet")
    with pytest.raises(
        UserError, match="train-00001-of-00002.parquet: has columns text, train-00000-of-00002.parquet has bild, art"
    ):
        read_images(hub)


def test_flags_are_said_as_they_were_given():
    import click

    given = [
        "--anchor",
        "a",
        "--positive",
        "b",
        "--negative",
        "c",
        "--negative",
        "d e",
        "--split",
        "dev",
        "--min-score",
        "0.5",
    ]
    context = cli.commands["sweep"].make_context(
        "sweep", [*given, "--data", "x.csv", "--model", MINILM, "--output", "y"], **cli.context_settings
    )
    with context.scope():
        assert isinstance(context, click.Context)
        assert sorted(as_words(context.params)) == sorted(given)


@pytest.mark.parametrize(
    ("header", "asked", "remedy", "renamed"),
    [
        ("satz,klasse", {}, "rename its columns to 'text' and 'label', or to 'anchor' and 'positive'", "text,label"),
        ("satz,label", {}, "rename its column 'satz' to 'text'", "text,label"),
        ("id,satz,topic", {"text": "said", "label": "topic"}, "rename its column 'satz' to 'said'", "id,said,topic"),
        (
            "a,b",
            {"text": "said", "label": "topic"},
            "rename its columns to 'said' and 'topic', as --data",
            "said,topic",
        ),
        ("frage,a", {"anchor": "frage", "positive": "b"}, "rename its column 'a' to 'b'", "frage,b"),
        ("said,b", {"text": "said", "label": "topic"}, "columns said; not used: b.*classes to 'topic'", "said,topic"),
        ("text,b", {}, "rename its column of classes to 'label' or name it by --label, or", "text,label"),
    ],
)
def test_a_file_to_judge_by_is_told_which_names_it_needs(tmp_path, header, asked, remedy, renamed):
    """The flags name the columns of --data; with the names that are told it is read."""
    path, asked = tmp_path / "a.csv", Asked(**asked, optional=True)
    rows = [[f"{column} {row}" for column in range(header.count(",") + 1)] for row in range(4)]
    path.write_text("\n".join([header, *map(",".join, rows)]) + "\n")
    with pytest.raises(UserError, match=remedy):
        read_held(path, asked)
    path.write_text("\n".join([renamed, *map(",".join, rows)]) + "\n")
    assert read_held(path, asked).count == 4


def test_pictures_to_judge_by_are_told_which_names_they_need(tmp_path):
    (tmp_path / "a.csv").write_text("bild,art\n1.png,a\n")
    with pytest.raises(UserError, match=r"rename one to 'foto'$"):
        read_images(tmp_path / "a.csv", asked=Asked(image="foto", optional=True))
    with pytest.raises(UserError, match=r"found: bild, art.; rename them$"):
        read_pairs(tmp_path / "a.csv", asked=Asked(anchor="foto", positive="text", optional=True))


def test_a_class_named_among_nested_rows_needs_its_texts(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"query": "a", "pos": ["b"], "neg": ["c"], "kind": "d"}) + "\n")
    assert read_texts(path).is_pairs
    with pytest.raises(UserError, match="no column text"):
        read_texts(path, Asked(label="kind"))


def test_columns_named_of_a_file_without_commas(tmp_path):
    (tmp_path / "a.csv").write_text("Message;Reason\na;b\n")
    with pytest.raises(UserError, match="no such column .found: Message;Reason.; separate columns by commas"):
        read_texts(tmp_path / "a.csv", Asked(text="Message"))


def test_lists_that_the_first_row_lacks_are_lists_all_the_same(tmp_path):
    rows = [
        {"anchor": "a", "positive": ["b"], "negative": None, "negative_scores": None},
        {"anchor": "c", "positive": ["d", "e"], "negative": ["f", "g"], "negative_scores": [0.1, 0.2]},
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_texts(tmp_path / "x.jsonl").columns
    assert {name: list(column) for name, column in found.items()} == {
        "anchor": ["a", "c", "c"],
        "positive": ["b", "d", "e"],
        "negative_1": ["", "f", "f"],
        "negative_2": ["", "g", "g"],
    }
