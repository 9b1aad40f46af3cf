"""Embedding on several devices: a process each, which takes shard after shard."""

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import get_context, parent_process
from queue import Empty
from typing import Any

from retrieval.errors import UserError
from retrieval.store import Job

PATIENCE = 1.0  # seconds between looks at whether the processes still live


def run_on_devices(
    encoder: str, devices: list[str], settings: dict[str, Any], job: Job, progress: Callable[[int], None]
) -> None:
    """Write the shards of a job. Each process loads the encoder by name onto its device, with `settings` for its Encoding.

    Raises what a process raised; shards that were finished stay listed.
    """
    context = get_context("spawn")
    numbers, results = context.Queue(), context.Queue()
    for number in [*job.todo, *(None for _ in devices)]:
        numbers.put(number)
    bare = replace(job, source=replace(job.source, encoding=None))  # type: ignore[type-var]
    cpus = devices.count("cpu")
    processes = [
        context.Process(target=_work, args=(encoder, device, cpus, settings, bare, numbers, results), daemon=True)
        for device in devices
    ]
    try:
        for process in processes:
            process.start()
        left = len(processes)
        while left:
            try:
                number, outcome = results.get(timeout=PATIENCE)
            except Empty:
                dead = next((p for p in processes if p.exitcode not in (None, 0)), None)
                if dead is not None:
                    raise UserError(
                        f"an embedding process was ended from outside (exit code {dead.exitcode}), perhaps for want of memory; "
                        f"the same command again goes on from the shards that are whole"
                    ) from None
                continue
            if isinstance(outcome, Exception):
                raise outcome
            if number is None:
                left -= 1
            else:
                job.shards.add(number, outcome)
                progress(outcome["rows"])
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


def _work(encoder: str, device: str, cpus: int, settings: dict[str, Any], job: Any, numbers: Any, results: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        import torch

        from retrieval.cpus import usable_cpus
        from retrieval.embed import overlapped
        from retrieval.encode import Encoding
        from retrieval.encoder import load_encoder

        if device == "cpu":
            torch.set_num_threads(max(1, usable_cpus() // cpus))
            os.environ["RAYON_NUM_THREADS"] = str(torch.get_num_threads())  # the tokenizer's
        encoding = Encoding(load_encoder(encoder, device).model, **settings)
        corpus = replace(job.source, encoding=encoding)

        def todo() -> Iterator[int]:
            while (number := numbers.get()) is not None:
                yield number

        overlapped(corpus, job, todo(), lambda *finished: results.put(finished), lambda rows: None)
        results.put((None, None))
    except UserError as error:
        results.put((None, UserError(str(error))))
    except Exception:
        results.put((None, RuntimeError(f"an embedding process failed:\n{traceback.format_exc()}")))


def _end_with_parent() -> None:
    """A killed parent must not leave processes that go on writing beside its successor."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
