"""Reading texts that people have, and refusing the rest in one line."""

import pytest

from retrieval.data import Asked, read_texts
from retrieval.errors import UserError


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "name,content",
    [
        ("a.csv", 'text,label\n"one, two",x\nthree,y\n'),
        ("a.csv", '\ufefflabel,text\nx,"one, two"\ny,three\n'),
        ("a.tsv", "text\tcategory\none, two\tx\nthree\ty\n"),
        ("a.jsonl", '{"text": "one, two", "label": "x"}\n\n{"text": "three", "label": "y"}\n'),
    ],
)
def test_labelled_texts(tmp_path, name, content):
    data = read_texts(write(tmp_path / name, content))
    assert (data.texts, data.labels, data.ids, len(data)) == (["one, two", "three"], ["x", "y"], None, 2)
    assert read_texts(tmp_path / name, Asked(labels=False)).labels is None
    assert not data.is_pairs and "2 rows" in data.origin and "2 classes" in data.origin


def test_pairs_with_negatives_and_ids(tmp_path):
    data = read_texts(write(tmp_path / "a.csv", "id,anchor,positive,negative_1,negative_2\n7,a,b,c,d\n8,e,f,g,h\n"))
    assert data.is_pairs and data.ids == ["7", "8"] and data.texts == ["a", "e"]
    assert list(data.columns) == ["anchor", "positive", "negative_1", "negative_2"]


def test_lines(tmp_path):
    data = read_texts(write(tmp_path / "a.txt", "one\n\n  two \n"))
    assert data.texts == ["one", "two"] and data.labels is None


@pytest.mark.parametrize(
    "name,content,words",
    [
        ("a.csv", "", ["is empty"]),
        ("a.csv", "text,label\n", ["is empty"]),
        ("a.txt", "\n\n", ["is empty"]),
        ("a.csv", "title,label\na,b\n", ["no column text", "title, label"]),
        ("a.csv", "text,label\na,\n", ["line 2", "'label'"]),
        ("a.csv", "text,label\na,b\nc\n", ["line 3", "fewer fields"]),
        ("a.csv", "text,label\na,b,c\n", ["line 2", "more fields"]),
        ("a.csv", "text;label\na;b\nc, d;e\n", ["semicolons", "separate them by commas"]),
        ("a.csv", 'text;label\n"a, b";c\n', ["semicolons", "separate them by commas"]),
        ("a.tsv", "text;label\na\tb;c\n", ["semicolons", "separate them by tabs"]),
        ("a.csv", 'text,label\n"a,b\n', ["quote"]),
        ("a.csv", b"text,label\na,b\n\xff\xfe,c\n", ["not UTF-8", "line 3"]),
        ("a.jsonl", '{"text": "a"}\n{"text"\n', ["line 2", "not JSON"]),
        ("a.jsonl", "[1]\n", ["line 1", "not an object"]),
        ("a.csv", "id,text\n1,a\n1,b\n", ["'1'", "more than once"]),
        ("a.xlsx", "x", [".xlsx"]),
    ],
)
def test_bad_texts_are_refused(tmp_path, name, content, words):
    with pytest.raises(UserError) as caught:
        read_texts(write(tmp_path / name, content))
    for word in (*words, name):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
