"""Corners where two features meet."""

import json

import numpy as np
import pytest
import torch
from test_index import rows_for, store_of, unit

from retrieval.data import read_texts
from retrieval.errors import UserError
from retrieval.index.build import build
from retrieval.index.change import remove, retune
from retrieval.index.search import search
from retrieval.neighbors import exact_neighbors


def found_at(index, queries, effort):
    return search(index, queries, 10, settings={"effort": effort}).rows


@pytest.mark.parametrize("factory", ["NSG8,Flat", "PCA12,NSG8,Flat"])
def test_an_nsg_searches_with_the_effort_of_each_call(tmp_path, factory):
    store = store_of(tmp_path / "store", rows_for(3000))
    index = build(store, tmp_path / "index", factory=factory)
    queries, efforts = unit(50, seed=3), (10, 4096, 10)  # 4,096 are more than there are rows
    first, most, again = (found_at(index, queries, effort) for effort in efforts)
    truth = exact_neighbors(queries, store.embeddings(), 10).ids
    assert np.array_equal(first, again)
    assert (most == truth).mean() > (first == truth).mean()


def test_an_index_without_rows_is_not_tuned(tmp_path):
    build(store_of(tmp_path / "store", rows_for(20)), tmp_path / "index", factory="HNSW8")
    remove(tmp_path / "index", [f"id-{i}" for i in range(20)])
    with pytest.raises(UserError, match="no rows to tune by"):
        retune(tmp_path / "index", goal=None)


def test_ids_are_those_that_are_written(tmp_path, run_cli):
    np.save(tmp_path / "x.npy", unit(20))
    run_cli("store", "import", tmp_path / "x.npy", "--metric", "cosine", "--output", tmp_path / "s")
    for bad in ("1_0", "05", "+5", "five"):
        assert "its ids are integers" in run_cli("store", "delete", tmp_path / "s", "--id", bad, code=2).output


def test_weights_of_two_names_are_interpolated_once():
    from retrieval.train.adapt import interpolate

    shared = torch.nn.Linear(3, 3)
    model = torch.nn.ModuleDict({"a": shared, "b": shared, "c": torch.nn.Linear(3, 3)})
    old = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in model.parameters():
            value += 1
    interpolate(model, old, 0.5)
    assert all(torch.allclose(value, old[name] + 0.5) for name, value in model.state_dict().items())


def test_a_rows_own_negatives_stay_beside_those_of_score_0(tmp_path):
    from retrieval.data import pairs_by_score

    path = tmp_path / "pairs.csv"
    path.write_text("anchor,positive,negative,label\na,p,own,1\na,z,,0\n")
    columns = pairs_by_score(read_texts(path), None, str(path)).columns
    assert [column[0] for name, column in columns.items() if name.startswith("negative")] == ["own", "z"]
    columns = pairs_by_score(read_texts(path), None, str(path), 1).columns
    assert [column[0] for name, column in columns.items() if name.startswith("negative")] == ["own"]
    path.write_text("anchor,positive,label\na,p,0\n")
    with pytest.raises(UserError, match="has no positives"):
        pairs_by_score(read_texts(path), None, str(path))


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("anchor,positive,negative,negative\na,p,one,two\n")
    with pytest.raises(UserError, match="two columns 'negative'"):
        read_texts(path)


def test_checkpoints_judged_by_other_data_are_not_gone_on_from(command, run_cli, pairs_file, tmp_path, monkeypatch):
    judged = [*command, "--eval-every", 2, "--output", tmp_path / "run", "--eval-data"]
    lines = pairs_file.read_text().splitlines()
    (tmp_path / "other.csv").write_text("\n".join([*lines[:5], *lines[-5:]]) + "\n")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("retrieval.cli.training.finish", killed)
        assert "the same command goes on from step 6" in run_cli(*judged, pairs_file, code=130).stderr
    assert "interrupted training" in run_cli(*judged, tmp_path / "other.csv", code=2).output
    assert "goes on from step" in run_cli(*judged, pairs_file).output


def test_queries_of_classes_that_the_reference_lacks(clusters, tmp_path, run_cli):
    x, labels = clusters
    few = [row for row, label in enumerate(labels) if label in labels[:40]]
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "r.npy", x[few])
    (tmp_path / "x.txt").write_text("\n".join(labels) + "\n")
    (tmp_path / "r.txt").write_text("\n".join(labels[row] for row in few) + "\n")
    told = run_cli("eval", "clusters", tmp_path / "x.npy", "--labels", tmp_path / "x.txt", "--metric", "cosine",
                   "--reference", tmp_path / "r.npy", "--reference-labels", tmp_path / "r.txt", "--json")  # fmt: skip
    assert set(json.loads(told.stdout)["nearest_classes"]) <= set(labels)


def test_plots_of_equal_differences_and_of_dollars():
    from retrieval.eval.report.figures import forest

    figure = forest("f", [(r"a $\frac$ b", 0.09999999999999999, (0.1, 0.10000000000000003))])
    assert r"$\frac$" in figure.svg()


def test_no_texts_have_no_vectors(minilm):
    assert minilm.encode([]).shape == (0, 384)
