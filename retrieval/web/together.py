"""One encoder for many threads: texts that wait while it runs are then encoded in one batch, which takes half the time or less."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from retrieval.neighbors import Floats


@dataclass
class _Waiting:
    texts: Sequence[str]
    vectors: Floats | None = None
    failure: Exception | None = None


class Together:
    """Calls `encode` (texts, to vectors) for several threads at a time, and for one thread at once where no other is there."""

    def __init__(self, encode: Callable[[list[str]], Floats]) -> None:
        self.encode = encode
        self._waiting: list[_Waiting] = []
        self._adding, self._running = threading.Lock(), threading.Lock()

    def __call__(self, texts: Sequence[str]) -> Floats:
        mine = _Waiting(texts)
        with self._adding:
            self._waiting.append(mine)
        with self._running:
            if mine.vectors is None and mine.failure is None:  # nobody who ran meanwhile took it along
                with self._adding:
                    batch, self._waiting = self._waiting, []
                self._run(batch)
        if mine.failure is not None:
            raise mine.failure
        assert mine.vectors is not None
        return mine.vectors

    def alone(self, run: Callable[[], Any]) -> Any:
        """Something else of the encoder's, while nothing of it runs."""
        with self._running:
            return run()

    def _run(self, batch: list[_Waiting]) -> None:
        try:
            vectors, start = self.encode([text for each in batch for text in each.texts]), 0
            for each in batch:
                each.vectors = vectors[start : start + len(each.texts)]
                start += len(each.texts)
        except Exception as error:
            if len(batch) == 1:
                batch[0].failure = error  # its own thread's to raise
                return
            for each in batch:  # whose text it was is found one by one
                self._run([each])
