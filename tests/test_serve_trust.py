"""`retrieval serve` in operation: how it is ended, generations that cannot be opened at once, names that are no UTF-8, more clients than
files may be open."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pytest
from test_index import rows_for, store_of
from test_serve import asked, running

from retrieval.index.build import build
from retrieval.index.change import remove
from retrieval.web import served as serving
from retrieval.web.running import listen
from retrieval.web.served import Served


@pytest.fixture
def index(tmp_path):
    build(store_of(tmp_path / "store", rows_for(300), encoder=None), tmp_path / "index")
    return tmp_path / "index"


@contextmanager
def command(index, main="from retrieval.cli import main; main()", words=(), **options):
    words = [sys.executable, "-c", main, "serve", str(index), "--port", "0", "--json", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": os.environ}
    with subprocess.Popen(words, **pipes, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_command_serves_until_it_is_ended(index):
    with command(index) as process:
        told = json.loads(process.stdout.readline())
        assert told["count"] == 300 and asked(told["address"] + "health")[1]["status"] == "ok"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and stderr.strip() == "ended"


def test_the_log_has_a_line_a_request_and_not_what_was_asked(index):
    with command(index, words=["--log"]) as process:
        address = json.loads(process.stdout.readline())["address"]
        for path in ("health", "api/search?query=secret", "nosuch%0Apath"):
            asked(address + path)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    lines = [re.sub(r"[\d.]+ ms$", "1 ms", line) for line in stderr.splitlines()]
    *told, last = (re.sub(r"^20\d\d-\d\d-\d\dT\S+\+00:00 ", "", line) for line in lines)
    assert last == "ended" and told == [
        "GET /health 200 1 ms",
        "GET /api/search 400 1 ms",
        "GET /nosuch%0Apath 404 1 ms",
    ]


@pytest.mark.parametrize(
    ("ignored", "sent"),
    [
        ((), [signal.SIGINT, signal.SIGINT]),
        ((), [signal.SIGHUP, signal.SIGINT]),  # begins to end, as SIGTERM makes it
        ((signal.SIGHUP,), [signal.SIGHUP, signal.SIGTERM, signal.SIGINT]),  # nohup
    ],
)
def test_it_is_ended_quietly_while_a_request_is_answered(index, ignored, sent):
    with command(index, preexec_fn=lambda: [signal.signal(each, signal.SIG_IGN) for each in ignored]) as process:
        address = json.loads(process.stdout.readline())["address"]
        assert asked(address + "health")[0] == 200
        with socket.create_connection(("127.0.0.1", int(address.strip("/").rsplit(":")[-1]))) as caller:
            caller.sendall(b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            for number in sent:
                time.sleep(0.5)
                assert process.poll() is None
                process.send_signal(number)
            _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and stderr.strip() == "ended"


def test_a_port_that_is_taken_is_said_at_once(index, run_cli):
    with listen("127.0.0.1", 0) as taken:
        told = run_cli("serve", index, "--port", taken.getsockname()[1], code=2)
    assert "cannot listen there (Address already in use); choose another" in told.stderr


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(serving, "AGAIN", 0.2)


def until(true):
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    "failure", [PermissionError(13, "Permission denied"), RuntimeError("in\ntwo lines"), MemoryError()]
)
def test_a_generation_that_cannot_be_opened_yet_is_opened_later(index, monkeypatch, soon, failure):
    """Rows that were removed stayed findable, and nobody was told."""
    said, opened = [], serving.open_index

    def fail(*args, **options):
        raise failure

    with running(index, say=said.append) as address:
        assert asked(f"{address}/health")[1]["status"] == "ok"
        monkeypatch.setattr(serving, "open_index", fail)
        remove(index, ["id-0"])
        until(lambda: asked(f"{address}/health")[1]["status"] == "stale")
        time.sleep(1)  # it is tried several times, and said once
        status, told = asked(f"{address}/health")
        assert status == 200 and told["generation"] == 1 and told["reason"].startswith(type(failure).__name__)
        assert said == [f"still serving generation 1: {told['reason']}"] and "\n" not in said[0]
        assert asked(f"{address}/api/search?id=id-0&k=1")[0] == 200
        monkeypatch.setattr(serving, "open_index", opened)
        until(lambda: asked(f"{address}/health")[1]["status"] == "ok")
        assert asked(f"{address}/api/search?id=id-0&k=1")[0] == 400 and said[1:] == ["generation 2: 299 items"]


def test_what_is_half_copied_is_served_when_it_is_whole(index, tmp_path, soon):
    """A manifest whose other files come after it."""
    said = []
    served = Served(index, say=said.append)
    remove(index, ["id-0"])
    part = max(index.glob("*.h5"))
    part.rename(tmp_path / part.name)
    until(lambda: served.index() and served.stale())
    assert served.index().manifest["generation"] == 1 and part.name in served.stale()
    (tmp_path / part.name).rename(part)
    until(lambda: served.index().manifest["generation"] == 2)
    assert served.stale() is None and len(said) == 2


def test_a_failure_is_not_tried_again_at_once_but_what_comes_after_it_is(index, monkeypatch):
    said, tries, opened = [], [], serving.open_index
    served = Served(index, say=said.append)
    monkeypatch.setattr(serving, "AGAIN", 3600)
    monkeypatch.setattr(serving, "open_index", lambda *args, **options: tries.append(1) or opened(*args, **options))
    good = (index / "manifest.json").read_bytes()
    (index / "manifest.json").write_text("{")
    until(lambda: served.index() and served.stale())
    for _ in range(50):
        served.index()
        time.sleep(0.01)
    assert len(tries) == len(said) == 1
    (index / "manifest.json").write_bytes(good)
    remove(index, ["id-0"])
    until(lambda: served.index().manifest["generation"] == 2)
    assert served.stale() is None


def test_an_index_whose_files_were_away_is_served_again(index, tmp_path, soon):
    """Its manifest is the one that was open."""
    part = max(index.glob("*.h5"))
    with running(index) as address:
        part.rename(tmp_path / "away")
        assert asked(f"{address}/api/search?id=id-0")[0] == asked(f"{address}/health")[0] == 503
        (tmp_path / "away").rename(part)
        until(lambda: asked(f"{address}/health")[1]["status"] == "ok")
        assert asked(f"{address}/api/search?id=id-0")[0] == 200


def test_vectors_of_another_encoder_are_stale(index, tmp_path, soon):
    class Other:
        fingerprint, name = "f" * 64, "another"

    served = Served(index)
    served.encoder = Other()
    remove(index, ["id-0"])
    until(lambda: served.index() and served.stale())
    assert "another: is not the encoder of this index" in served.stale()
    assert served.index().rows.count == 300


def test_a_folder_whose_name_is_no_utf8_is_told_about(index, tmp_path):
    odd = index.rename(tmp_path / "bad\udcff")
    with running(odd) as address:
        status, told = asked(f"{address}/api/about")
        assert status == 200 and told["index"] == "bad\udcff"
        (odd / "manifest.json").write_text("{")
        until(lambda: asked(f"{address}/health")[1]["status"] == "stale")
        assert "bad\udcff" in asked(f"{address}/health")[1]["reason"]
        status, told = asked(f"{address}/api/search?id=id-0&label=nosuch")
        assert status == 400 and "label 'nosuch'" in told["error"]


@contextmanager
def clients(address, count):
    """That connect and say nothing."""
    with ExitStack() as stack:
        port = int(address.strip("/").rsplit(":")[-1])
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(count)]


def limit(soft, hard):
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_clients_than_files_are_said_in_a_line_and_wait(index):
    """Each attempt to accept was logged, tens of thousands a second."""
    with command(index, preexec_fn=limit(64, 64)) as process:
        address = json.loads(process.stdout.readline())["address"]
        with clients(address, 100):
            time.sleep(3)
        assert asked(address + "health")[1]["status"] == "ok"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    said = "no more connections can be accepted (Too many open files); they wait until others end"
    assert stderr.splitlines() == [said, "ended"]


def test_as_many_clients_as_the_system_allows(index):
    with command(index, preexec_fn=limit(64, 1024)) as process:
        address = json.loads(process.stdout.readline())["address"]
        assert asked(address + "health")[0] == 200
        process.send_signal(signal.SIGSTOP)  # so that nothing is accepted meanwhile
        with clients(address, 100):
            process.send_signal(signal.SIGCONT)
            assert asked(address + "health")[1]["status"] == "ok"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert stderr.strip() == "ended"


def test_what_does_not_end_in_time_is_cut_off_without_a_traceback(index):
    main = "from retrieval.web import running; running.FINISHING = 1; from retrieval.cli import main; main()"
    with command(index, main) as process:
        address = json.loads(process.stdout.readline())["address"]
        with clients(address, 2) as callers:
            for caller in callers:
                caller.sendall(b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and stderr.splitlines() == ["what took longer than 1 s was cut off", "ended"]
