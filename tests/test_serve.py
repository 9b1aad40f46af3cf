"""`retrieval serve`: the API beside `retrieval search`, many callers at once, newer generations, what is refused, the page in a browser."""

import io
import json
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

import numpy as np
import pytest
import uvicorn
from PIL import Image
from test_browser import CHROMIUM

from retrieval.cli.output import as_line
from retrieval.errors import UserError
from retrieval.index.bundle import open_index
from retrieval.index.change import add, remove
from retrieval.neighbors import exact_neighbors
from retrieval.store import Held, Kind, Rows, create, open_store
from retrieval.web.app import LARGEST_BODY, is_local, make_app
from retrieval.web.question import from_address, from_json
from retrieval.web.running import listen
from retrieval.web.served import Served
from retrieval.web.together import Together

MINILM = "all-MiniLM-L6-v2"


@contextmanager
def running(folder, **options):
    """Serve an index in this process; yields its address."""
    listening = listen("127.0.0.1", 0)
    served = Served(folder, **options)
    server = uvicorn.Server(uvicorn.Config(make_app(served, "127.0.0.1", as_line), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


@pytest.fixture
def serving():
    """`running` until the test ends; a function that returns the address."""
    with ExitStack() as stack:
        yield lambda folder, **options: stack.enter_context(running(folder, **options))


def asked(address, body=None, **headers):
    """(status, JSON or bytes) of an address, by GET or with a body by POST."""
    data = json.dumps(body).encode() if isinstance(body, dict | list) else body
    try:
        with urlopen(Request(address, data, headers), timeout=60) as response:
            content, kind, status = response.read(), response.headers["content-type"], response.status
    except HTTPError as error:
        content, kind, status = error.read(), error.headers["content-type"], error.code
    return status, json.loads(content) if kind == "application/json" else content


@pytest.fixture
def vectors():
    x = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def index(tmp_path, run_cli, vectors):
    """Vectors of an encoder that nobody told."""
    ids, labels = [f"id {i}" for i in range(300)], [f"class {i % 3}" for i in range(300)]
    rows = Rows(vectors, ids, labels, {"text": [f"<b>text</b> {i}" for i in range(300)]})
    create(tmp_path / "store", Held(rows), Kind(16)).close()
    run_cli("index", "build", tmp_path / "store", "--output", tmp_path / "index")
    return tmp_path / "index"


def test_vectors_and_ids_are_answered_as_by_exact_search(index, serving, vectors):
    address = serving(index)
    truth = exact_neighbors(vectors[:5], vectors, 4)
    status, told = asked(f"{address}/api/search", {"vectors": vectors[:5].tolist(), "k": 4})
    assert status == 200 and told["generation"] == 1 and told["how"]["way"] == "exact"
    for row, one in enumerate(told["results"]):
        assert [hit["id"] for hit in one["hits"]] == [f"id {i}" for i in truth.ids[row]]
        assert np.allclose([hit["score"] for hit in one["hits"]], truth.scores[row], atol=1e-6)
    _, alike = asked(f"{address}/api/search?id={quote('id 3')}&k=4")
    assert alike["results"][0]["hits"] == told["results"][3]["hits"] and alike["results"][0]["query"] == "id 3"
    assert alike["results"][0]["hits"][0] == {
        "id": "id 3",
        "label": "class 0",
        "text": "<b>text</b> 3",
        "score": pytest.approx(1),
    }
    _, some = asked(
        f"{address}/api/search", {"ids": ["id 3"], "labels": ["class 1"], "among": ["id 4", "id 7", "id 8"]}
    )
    assert {hit["id"] for hit in some["results"][0]["hits"]} == {"id 4", "id 7"}
    _, near = asked(f"{address}/api/search", {"ids": ["id 3"], "radius": 0.5})
    assert [hit["id"] for hit in near["results"][0]["hits"]] == [
        f"id {i}" for i in np.argsort(-(vectors @ vectors[3])) if vectors[i] @ vectors[3] >= 0.5
    ]
    status, about = asked(f"{address}/api/about")
    assert (
        status == 200
        and about["count"] == 300
        and about["labels"] == ["class 0", "class 1", "class 2"]
        and about["takes"] == []
    )


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ([], "is no JSON object"),
        ({}, "none given"),
        ({"texts": ["a"], "ids": ["b"]}, "texts and ids given"),
        ({"texts": ["a"], "K": 3}, "K: is no key of a question"),
        ({"texts": []}, "texts: is no list, or an empty one"),
        ({"texts": "a"}, "texts: is no list"),
        ({"texts": [" "]}, "texts: ' ' is empty"),
        ({"texts": [3]}, "texts: 3 is empty or no string"),
        ({"ids": [True]}, "ids: True is empty or no string"),
        ({"vectors": [[1, 2], [3]]}, "vectors: are not rows"),
        ({"vectors": [[1, "x"]]}, "vectors: are not rows"),
        ({"vectors": [[1, None]]}, "vectors: are not rows"),
        ({"vectors": [[1e99]]}, "vectors: are not rows"),
        ({"vectors": [1, 2]}, "vectors: are not rows"),
        ({"ids": ["id 1"], "k": 0}, "k 0: give a whole number"),
        ({"ids": ["id 1"], "k": 2.5}, "k 2.5: give a whole number"),
        ({"ids": ["id 1"], "radius": "x"}, "radius 'x': give a finite number"),
        ({"ids": ["id 1"], "radius": 1.5}, "cosines are between"),
        ({"ids": ["id 1"], "radius": 10**400}, "radius 1000000.*: give a finite number"),
        ({"ids": ["id 1"], "labels": "class 1"}, "labels: is no list"),
        ({"ids": ["id 1"], "labels": ["class 9"]}, "label 'class 9': no item"),
        ({"ids": ["nosuch"]}, "lacks 1 .nosuch. of these ids"),
        ({"vectors": [[1.0] * 16]}, "has length 4, which cosine needs to be 1"),
        ({"vectors": [[1.0, 0.0]]}, "are of 2 numbers, those of the index of 16"),
        ({"texts": ["\ud800 a"]}, "holds half a character"),
        ({"ids": ["\ud800"]}, "holds half a character"),
        ({"texts": ["a"] * 1001}, "are 1,001, more than 1,000"),
        ({"ids": ["id 1"], "k": 10**60}, "k 1000000.*…: give a whole number"),
        ({"texts": ["a"]}, "the encoder of this index is not known; ask by vectors or ids"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_in_a_line(index, body, why, monkeypatch):
    served = Served(index)
    with pytest.raises(UserError, match=why):
        served.ask(from_json(body))


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ([], "give one kind of query"),
        ([("query", "a"), ("id", "b")], "give one kind of query"),
        ([("query", "a"), ("n", "3")], "n: is no parameter"),
        ([("query", "a"), ("k", "three")], "k 'three': give a number"),
        ([("query", "a"), ("radius", "nan")], "radius nan: give a finite number"),
        ([("query", " ")], "query: ' ' is empty"),
    ],
)
def test_addresses_that_ask_nothing(parameters, why):
    with pytest.raises(UserError, match=why):
        from_address(parameters)


def test_what_is_not_asked_as_it_should_be(index, serving):
    address = serving(index)
    for path, body, status, why in [
        ("/api/search", b"{", 400, "the body is no JSON"),
        ("/api/search", b"[" * 100_000, 400, "the body is no JSON"),
        ("/api/search?k=3", {"ids": ["id 1"]}, 400, "k: goes into the JSON"),
        ("/api/search", b" " * (LARGEST_BODY + 1), 413, "larger than 32 MiB"),
        ("/api/nosuch", None, 404, "Not Found"),
        ("/api/picture?id=id+1", None, 404, "no picture of this item"),
    ]:
        found, told = asked(address + path, body)
        assert found == status and why in told["error"], (path, told)
    # No page may have its own name resolved to us.
    assert asked(f"{address}/api/about", Host="elsewhere.example")[0] == 400
    assert asked(f"{address}/../served.py")[0] == 404


@pytest.mark.parametrize("parameters", ["", "?k=3"])
def test_a_form_is_told_how_to_send_a_picture(index, serving, parameters):
    """What `curl -F file=@a.png` sends."""
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n\x89PNG\r\n--x--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    status, told = asked(f"{serving(index)}/api/search{parameters}", body, **kind)
    assert status == 400 and "forms are not taken" in told["error"] and "--data-binary @a.png" in told["error"]


def test_many_ask_at_once_and_generations_change_meanwhile(index, serving, vectors, tmp_path):
    address = serving(index)
    fresh = Rows(-vectors[:20], [f"new {i}" for i in range(20)], ["class 0"] * 20, {"text": [""] * 20})
    create(tmp_path / "fresh", Held(fresh), Kind(16)).close()
    ended = threading.Event()

    def ask(worker):
        seen = set()
        while not ended.is_set():
            row = np.random.default_rng(worker).integers(20, 300)
            status, told = asked(f"{address}/api/search", {"vectors": [vectors[row].tolist()], "k": 1})
            assert status == 200 and told["results"][0]["hits"][0]["id"] == f"id {row}"
            seen.add(told["generation"])
        return seen

    with ThreadPoolExecutor(8) as pool:
        askers = [pool.submit(ask, worker) for worker in range(8)]
        add(index, open_store(tmp_path / "fresh"))
        remove(index, ["id 0"])
        deadline = time.monotonic() + 60
        while asked(f"{address}/health")[1]["generation"] < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        ended.set()
        assert set().union(*(asker.result() for asker in askers)) <= {1, 2, 3}
    mark = open_index(index).rows.manifest_hash[:12]
    assert asked(f"{address}/health")[1] == {"status": "ok", "generation": 3, "manifest": mark}
    assert asked(f"{address}/api/search", {"ids": ["new 3"], "k": 1})[1]["results"][0]["hits"][0]["id"] == "new 3"
    assert asked(f"{address}/api/search", {"ids": ["id 0"]})[0] == 400


def test_an_index_that_becomes_unreadable_is_served_as_it_was(index):
    said = []
    served = Served(index, say=said.append)
    (index / "manifest.json").write_text("{")
    deadline = time.monotonic() + 20
    while not said and time.monotonic() < deadline:
        assert served.index().rows.count == 300
        time.sleep(0.02)
    assert said and said[0].startswith("still serving generation 1:") and served.index().rows.count == 300


def test_an_index_that_is_gone_is_not_served_and_one_that_took_its_place_is(index, serving, run_cli, tmp_path):
    address = serving(index)
    question = {"ids": ["id 3"], "k": 1}
    run_cli("index", "build", tmp_path / "store", "--output", index, "--overwrite")
    assert all(asked(f"{address}/api/search", question)[0] == 200 for _ in range(20))
    shutil.rmtree(index)
    status, told = asked(f"{address}/api/search", question)
    assert status == 503 and "the index was removed" in told["error"] and asked(f"{address}/health")[0] == 503
    run_cli("index", "build", tmp_path / "store", "--output", index)
    deadline = time.monotonic() + 20
    while asked(f"{address}/api/search", question)[0] != 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert asked(f"{address}/api/search", question)[0] == asked(f"{address}/health")[0] == 200


def test_what_took_the_place_of_an_index_is_told_from_it(index, serving, run_cli, tmp_path):
    """Its generations begin at 1 again."""
    address, question = serving(index), {"ids": ["id 3"], "k": 1}

    def told():
        answers = (asked(f"{address}/health"), asked(f"{address}/api/about"), asked(f"{address}/api/search", question))
        return [(one["generation"], one["manifest"]) for _, one in answers]

    before = told()
    assert len({*before}) == 1 and before[0][0] == 1
    run_cli("index", "build", tmp_path / "store", "--factory", "HNSW8", "--output", index, "--overwrite")
    deadline = time.monotonic() + 60
    while told()[0] == before[0] and time.monotonic() < deadline:
        time.sleep(0.05)
    after = told()
    assert len({*after}) == 1 and after[0] == (1, open_index(index).rows.manifest_hash[:12]) and after != before


def test_the_head_of_an_answer(index, serving):
    address = serving(index)
    for path in ("/health", "/api/about", "/api/search?id=id+3&k=4"):
        with urlopen(Request(address + path, method="HEAD"), timeout=60) as response:
            assert response.status == 200 and not response.read() and int(response.headers["content-length"]) > 30


def test_a_text_that_fails_fails_alone():
    begun, go = threading.Event(), threading.Event()

    def encode(texts):
        begun.set()
        go.wait(5)
        if "bad" in texts:
            raise UserError("bad")
        return np.ones((len(texts), 1), np.float32)

    together = Together(encode)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(together, ["a"])
        begun.wait(5)
        rest = [pool.submit(together, [text]) for text in ("b", "bad", "c")]
        while len(together._waiting) < 3:
            time.sleep(0.001)
        go.set()
        assert [each.exception(10) is None for each in (first, *rest)] == [True, True, False, True]


def test_a_body_that_does_not_come_ends_quietly(index, serving, capfd):
    address = serving(index)
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    assert asked(f"{address}/health")[0] == 200
    time.sleep(0.3)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2", "::1"])
def test_addresses_of_this_machine_alone(host):
    assert is_local(host) and not is_local("0.0.0.0") and not is_local("elsewhere.example") and not is_local("")


def test_texts_of_several_threads_are_encoded_together():
    calls, busy = [], threading.Event()

    def encode(texts):
        calls.append(list(texts))
        busy.wait(5)
        if "bad" in texts:
            raise UserError("bad")
        return np.array([[len(text)] for text in texts], np.float32)

    together = Together(encode)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(together, ["a"])
        while not calls:
            time.sleep(0.001)
        rest = [pool.submit(together, ["b" * n, "c"]) for n in range(2, 6)]
        while len(together._waiting) < 4:
            time.sleep(0.001)
        busy.set()
        assert first.result().tolist() == [[1]]
        assert [each.result().tolist() for each in rest] == [[[n], [1]] for n in range(2, 6)]
    assert len(calls) == 2 and len(calls[1]) == 8
    with pytest.raises(UserError):
        together(["bad"])
    assert together(["good"]).tolist() == [[4]]


@pytest.fixture
def texts(tmp_path, run_cli, minilm):
    (tmp_path / "t.csv").write_text(
        "text,label\nA red apple.,fruit\nMy bike has a flat tyre.,bikes\nPears are green.,fruit\n"
    )
    run_cli("embed", "--encoder", MINILM, "--data", tmp_path / "t.csv", "--output", tmp_path / "ts")
    run_cli("index", "build", tmp_path / "ts", "--output", tmp_path / "ti")
    return tmp_path / "ti"


def test_texts_are_found_as_search_finds_them(texts, serving, run_cli):
    address = serving(texts)
    _, told = asked(f"{address}/api/search?" + urlencode({"query": "cycling", "k": 2}))
    direct = json.loads(run_cli("search", texts, "--query", "cycling", "-k", 2, "--json").stdout)
    assert told["results"] == direct["results"] and told["results"][0]["hits"][0]["label"] == "bikes"
    status, refused = asked(f"{address}/api/search", b"\x89PNG", **{"Content-Type": "image/png"})
    assert status == 400 and refused["error"] == "the picture: is not an image of a kind that Pillow knows"


def test_pictures_are_asked_and_shown(tmp_path, serving, run_cli, monkeypatch):
    folder = tmp_path / "photos"
    for name, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (300, 20), colour).save(folder / name / f"{number}.png")
    run_cli("train", "image", "--data", folder, "--model", "small", "--steps", 1, "--output", tmp_path / "run")
    run_cli("embed", "--encoder", tmp_path / "run", "--data", folder, "--output", tmp_path / "ps")
    run_cli("index", "build", tmp_path / "ps", "--output", tmp_path / "pi")
    address = serving(tmp_path / "pi")
    content = (folder / "blue" / "0.png").read_bytes()
    _, told = asked(f"{address}/api/search?k=1", content, **{"Content-Type": "image/png"})
    hit = told["results"][0]["hits"][0]
    assert hit["score"] == pytest.approx(1, abs=1e-3) and hit["label"] in ("blue", "red")
    _, picture = asked(f"{address}/api/picture?id={quote(str(hit['id']))}")
    assert Image.open(io.BytesIO(picture)).size == (256, 17)
    (folder / "red" / "0.png").unlink()
    statuses = [
        asked(f"{address}/api/picture?id={quote(i)}")[0] for i in map(str, open_store(tmp_path / "ps").load().ids)
    ]
    assert sorted(statuses) == [200, 200, 200, 404]


@pytest.mark.skipif(CHROMIUM is None, reason="browser: there is no chromium here")
def test_the_page_in_a_browser(index, serving, tmp_path):
    address = serving(index)
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
             "--virtual-time-budget=10000", "--dump-dom", f"{address}/?id={quote('id 3')}&k=4&label=class+0"]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert '<h1 id="name">index</h1>' in done.stdout and done.stdout.count("<li>") == 4
    assert "&lt;b&gt;text&lt;/b&gt; 3" in done.stdout and "4 results like id 3" in done.stdout
    assert 'id="text" hidden' in done.stdout and not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
