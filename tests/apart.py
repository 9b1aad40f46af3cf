"""Commands in processes of their own, to be killed or to train together.

What such a process costs is its imports, some ten seconds of them; so each is forked from one that has them already and does
nothing else, as multiprocessing's forkserver offers.
"""

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(
    ["retrieval.cli.train_text", "retrieval.cli.train_image", "retrieval.cli.sweep", "retrieval.cli.trials"]
    + ["retrieval.encoder", "retrieval.train.text", "retrieval.train.image", "retrieval.eval.clusters"]
)


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Running(NamedTuple):
    process: Any
    folder: Path

    def end(self) -> Done:
        self.process.join()
        out, err = ((self.folder / name).read_text("utf-8") for name in ("out", "err"))
        return Done(self.process.exitcode, out, err)


def begin(function: Callable[..., None], *args: Any, environ: Mapping[str, str] | None = None) -> Running:
    """Call a function of a module in a process of its own."""
    folder = Path(tempfile.mkdtemp())
    process = forked.Process(target=_speaking, args=(folder, dict(environ or {}), function, args))
    process.start()
    return Running(process, folder)


def _speaking(folder: Path, environ: dict[str, str], function: Callable[..., None], args: Sequence[Any]) -> None:
    os.environ.update(environ)
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        stream.flush()
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream.fileno())
    function(*args)


def command(*words: object) -> None:
    """`retrieval` with these words."""
    from retrieval.cli import main

    sys.argv = ["retrieval", *map(str, words)]
    main()


def killed(at: int, where: str, *words: object, seconds: int = 0) -> None:
    """A training that SIGKILL ends: after step `at`, or inside the writing of checkpoint `at`. They are so many seconds apart."""
    from retrieval.train import whole

    whole.CHECKPOINT_SECONDS = seconds  # type: ignore[misc]
    real, write, saves = whole.Timed.on_step_end, whole.write_atomically, []

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        real(self, args, state, control, **rest)
        if where == "step" and state.global_step == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def writing(*args: Any) -> None:
        if where == "save" and len(saves) + 1 == at:
            os.kill(os.getpid(), signal.SIGKILL)
        saves.append(write(*args))

    whole.Timed.on_step_end, whole.write_atomically = on_step_end, writing  # type: ignore[method-assign,assignment]
    command(*words)


def killed_unsaved(at: int, where: str, *words: object) -> None:
    """The same before any checkpoint was due."""
    killed(at, where, *words, seconds=10**9)


def one_of_several(*words: object) -> None:
    """`retrieval`, with which its process group must end: threads of gloo that outlive Python abort the process now and then."""
    try:
        command(*words)
    except SystemExit as ended:
        names = {path.read_text() for path in Path("/proc/self/task").glob("*/comm")}
        assert ended.code or not any("gloo" in name for name in names), names
        raise


def together(count: int, *words: object) -> list[Done]:
    """`retrieval` in processes that find each other as torchrun tells them to."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    running = [
        begin(one_of_several, *words, environ=common | {"RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(count)
    ]
    return [each.end() for each in running]


if __name__ == "__main__":
    one_of_several(*sys.argv[1:])
