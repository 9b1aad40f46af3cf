"""The whole path from tars and data sets of pictures, by the commands."""

import json
import tarfile

import pytest
from some_pictures import tar, write


@pytest.fixture(scope="module")
def shards(pictures, tmp_path_factory):
    """The digits' folders in two tars."""
    folder = tmp_path_factory.mktemp("shards")
    files = sorted(pictures.rglob("*.png"))
    for number in range(2):
        named = {f"{f.parent.name}/{f.name}": f.read_bytes() for f in files[number::2]}
        tar(folder / f"{number}.tar", named)
    return folder


def test_train_embed_search_and_report_from_tars(run_cli, shards, tmp_path):
    run, store, index, page = (tmp_path / name for name in ("run", "store", "index", "page.html"))
    quick = ["--device", "cpu", "--json"]
    run_cli("train", "image", "--data", shards, "--model", "small", "--steps", 4, "--output", run, *quick)
    told = json.loads(run_cli("embed", "--encoder", run, "--data", shards, "--output", store, *quick).stdout)
    assert told["count"] == 200
    run_cli("index", "build", store, "--output", index)
    with tarfile.open(shards / "0.tar") as archive:
        inside = next(each for each in archive.getnames() if each.startswith("3/"))
    name = f"{shards}/0.tar/{inside}"
    words = ["search", index, "--encoder", run, "--image", name, "-k", 1, *quick]
    (found,) = json.loads(run_cli(*words).stdout)["results"][0]["hits"]
    assert (found["path"], found["id"], found["label"]) == (name, f"0.tar/{inside}", "3") and found["score"] > 0.999
    run_cli("eval", "clusters", store)
    result = run_cli("report", store, "--output", page, "--map", "pca")
    assert "not where they were" not in result.output and "data:image/jpeg;base64" in page.read_text()
    missing = run_cli("search", index, "--encoder", run, "--image", f"{shards}/0.tar/none.png", code=2)
    assert "none.png: no such file" in missing.output
    folder = run_cli("search", index, "--encoder", run, "--image", shards, code=2)
    assert f"--image {shards}: is a folder; give a picture" in folder.output
    text = run_cli("search", index, "--encoder", run, "--query", "a shoe", code=2)
    assert "takes no texts; search by --image FILE" in text.output


def test_captions_of_a_table_are_shown(run_cli, pictures, tmp_path):
    from retrieval.store import open_store

    files = sorted(pictures.rglob("*.png"))[::20]
    rows = [{"image": str(file), "captions": [f"a {file.parent.name}", "", "on paper"]} for file in files]
    rows[3]["captions"] = None
    table, store, index, page = (tmp_path / name for name in ("a.jsonl", "store", "index", "page.html"))
    table.write_text("\n".join(map(json.dumps, rows)))
    run, quick = tmp_path / "run", ["--device", "cpu"]
    run_cli("train", "image", "--data", pictures, "--model", "small", "--steps", 1, "--output", run, *quick)
    words = ["embed", "--encoder", run, "--data", table, "--output", store, *quick]
    assert "columns image, captions" in run_cli(*words).stderr
    with open_store(store) as opened:
        held = opened.load()
    assert held.payload["caption"][:2] == ["a 0; on paper", "a 1; on paper"] and held.payload["caption"][3] == ""
    assert "is already what this command makes" in run_cli(*words).stderr
    run_cli("index", "build", store, "--output", index)
    words = ["search", index, "--encoder", run, "--image", files[1], "-k", 1, *quick]
    assert "a 1; on paper" in run_cli(*words).stdout
    assert json.loads(run_cli(*words, "--json").stdout)["results"][0]["hits"][0]["caption"] == "a 1; on paper"
    run_cli("report", store, "--output", page, "--map", "pca")
    assert "a 1; on paper" in page.read_text("utf-8") and "data:image/jpeg;base64" in page.read_text("utf-8")
    table.write_text("\n".join(map(json.dumps, rows)).replace("on paper", "in ink"))
    run_cli("embed", "--encoder", run, "--data", table, "--output", store, "--overwrite", *quick)
    with open_store(store) as opened:
        assert opened.load().payload["caption"][1] == "a 1; in ink"


def test_labels_can_be_left_out(run_cli, pictures, tmp_path):
    """Class folders train as loose pictures do, and are judged by their classes; an album has folders and loose pictures."""
    files = sorted(pictures.rglob("*.png"))
    for file in (*files[:6], *files[100:106]):
        write(tmp_path / "set" / file.parent.name / file.name, file.read_bytes())
    run, quick = tmp_path / "run", ["--no-labels", "--device", "cpu"]
    words = ["--data", tmp_path / "set", "--eval-data", tmp_path / "set", "--model", "small", "--steps", 1]
    told = run_cli("train", "image", *words, "--output", run, *quick)
    assert "12 images, no labels; no labels, so two views" in told.stderr and "held-out, 12 queries" in told.stdout
    assert json.loads((run / "run" / "config.json").read_text())["augment"] == "simclr"
    write(tmp_path / "set" / "loose.png", files[50].read_bytes())
    words = ["embed", "--encoder", run, "--data", tmp_path / "set", "--output", tmp_path / "store", "--device", "cpu"]
    assert "such as loose.png; move them into a class folder, or leave labels out: --no-labels" in run_cli(*words, code=2).stderr  # fmt: skip
    assert "13 images, no labels" in run_cli(*words, "--no-labels").stderr
    both = run_cli(*words, "--no-labels", "--label", "x", code=2).stderr
    assert "--label, --no-labels: give one of them" in both


def test_pictures_that_are_left_out_are_named(run_cli, pictures, tmp_path):
    """Also where a class of one is left out as well, after which training once counted none."""
    files = sorted(pictures.rglob("*.png"))
    for file in [*files[:6], *files[100:106], files[-1]]:
        write(tmp_path / "set" / file.parent.name / file.name, file.read_bytes())
    broken = [str(write(tmp_path / "set" / "0" / f"broken-{at:02}.png", b"no picture")) for at in range(12)]
    run, store, quick = tmp_path / "run", tmp_path / "store", ["--device", "cpu", "--skip-bad"]
    words = ["train", "image", "--data", tmp_path / "set", "--model", "small", "--steps", 1, "--output", run]
    first = f"Warning: 12 images cannot be read and were left out: {', '.join(broken[:10])} and 2 more\n"
    assert first in run_cli(*words, *quick).stderr
    config = json.loads((run / "run" / "config.json").read_text())
    assert config["skipped"] == 12 and config["skipped_images"] == broken
    words = ["embed", "--encoder", run, "--data", tmp_path / "set", "--output", store]
    result = run_cli(*words, *quick, "--json")
    told = json.loads(result.stdout)
    assert first in result.stderr and told["skipped"] == 12 and told["skipped_images"] == broken


def test_train_and_embed_from_a_data_set(run_cli, pictures, tmp_path):
    import datasets

    files = sorted(pictures.rglob("*.png"))
    names = [f"digit {number}" for number in range(10)]
    rows = {"image": [str(f) for f in files], "label": [int(f.parent.name) for f in files]}
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    whole = datasets.Dataset.from_dict(rows, features=kinds)
    datasets.DatasetDict({"train": whole, "test": whole.select(range(0, 200, 4))}).save_to_disk(tmp_path / "set")
    run, store = tmp_path / "run", tmp_path / "store"
    quick = ["--device", "cpu", "--json"]
    words = ["--data", tmp_path / "set", "--eval-data", tmp_path / "set", "--model", "small", "--steps", 2]
    run_cli("train", "image", *words, "--output", run, *quick)
    words = ["embed", "--encoder", run, "--data", tmp_path / "set", "--split", "test", "--output", store, *quick]
    assert json.loads(run_cli(*words).stdout)["count"] == 50
    from retrieval.store import open_store

    with open_store(store) as opened:
        held = opened.load()
    assert held.labels[0] == "digit 0" and held.payload["path"][49].endswith("test/data-00000-of-00001.arrow/image/49")


@pytest.mark.parametrize(
    "name,content,words",
    [
        ("a.csv", "path,label\nx.png,1\n", ["a.csv: line 2: x.png: no such file"]),
        ("a.tar", "nothing", ["a.tar: not a whole tar"]),
        ("a.tar.gz", "nothing", ["a.tar.gz: is compressed"]),
        ("a.parquet", "nothing", ["a.parquet: is not whole Parquet"]),
        ("a.jsonl", '{"image": 3}\n', ["a.jsonl: line 1: its image is no path (3)"]),
    ],
)
def test_mistakes_are_one_line_and_at_once(run_cli, tmp_path, name, content, words):
    write(tmp_path / name, content)
    for command in (["train", "image", "--model", "small"], ["embed", "--encoder", "nowhere"]):
        told = run_cli(*command, "--data", tmp_path / name, "--output", tmp_path / "o", code=2).stderr.strip()
        assert len(told.splitlines()) == 1 and all(word in told for word in words)
