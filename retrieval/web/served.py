"""An index and its encoder, opened once and asked by many at a time; a newer generation takes the place of the older."""

import io
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.artifact import MANIFEST
from retrieval.encoder import Encoder
from retrieval.errors import Gone, UserError, first_line
from retrieval.images import decode, picture_at
from retrieval.index.ask import answer, encoded, encoder_of, plain
from retrieval.index.bundle import Index, open_index, require_same_encoder
from retrieval.index.filters import allowed, row_numbers
from retrieval.index.search import hits
from retrieval.neighbors import Floats
from retrieval.store import not_unit, refuse_bad_vectors
from retrieval.store.ids import typed_ids

from .question import Question
from .together import Together

LABELS_TOLD = 1_000
BLOCK = 32  # texts of one question that are encoded at a time: others get in between
SIDE = 256  # pixels of a picture on the page
AGAIN = 5.0  # seconds until a generation that could not be opened is tried again

Stamp = tuple[int, int] | None


class Served:
    """Thread-safe. `say` is told of every generation that is opened, and of one that could not be."""

    def __init__(
        self,
        folder: Path,
        name: str | None = None,
        *,
        device: str = "cpu",
        index_device: str = "cpu",
        check: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder, self.index_device, self.check, self.say = folder, index_device, check, say
        self.gone = False  # whether questions find the files of the index no more
        self._failed: tuple[Stamp, str, float] | None = None  # what could not be opened, why, when to try it again
        self._said: set[str] = set()  # whys, since the last that was opened
        self.encoder: Encoder | None = None
        self._stamp = _stamp(folder)
        self._index = self._opened()
        if name is not None or self._index.manifest["encoder"] is not None:
            self.encoder = encoder_of(self._index, name, device)
        self._reopening = threading.Lock()
        self._texts = Together(lambda texts: self._encode(texts, texts))
        # What is set on a FAISS index for one call, as on a GPU and on an NSG, must not be set for another meanwhile.
        alone = index_device != "cpu" or not self._index.abilities.grows
        self._searching: AbstractContextManager[Any] = threading.Lock() if alone else nullcontext()

    def _opened(self) -> Index:
        index = open_index(self.folder, check=self.check, device=self.index_device)
        if self.encoder is not None:
            require_same_encoder(index.manifest, self.encoder.fingerprint, self.encoder.name)
        _ = index.base if index.exact else index.engine  # the first question should not wait for it
        return index

    def index(self) -> Index:
        """The newest generation that is open; one that is newer still is opened meanwhile."""
        if self._is_due() and self._reopening.acquire(blocking=False):
            threading.Thread(target=self._reopen, daemon=True).start()
        return self._index

    def stale(self) -> str | None:
        """Why the newest generation is not the one that is served, in a line; None where it is, or is just opened."""
        failed = self._failed
        return None if failed is None or _stamp(self.folder) == self._stamp else failed[1]

    def _is_due(self) -> bool:
        found, failed = _stamp(self.folder), self._failed
        if found == self._stamp and not self.gone:
            return False
        return failed is None or found != failed[0] or time.monotonic() >= failed[2]

    def _reopen(self) -> None:
        stamp, began = _stamp(self.folder), time.monotonic()
        try:
            newer = self._opened()
            self._index, self._stamp, self.gone, self._failed = newer, stamp, False, None
            self._said.clear()
            self.say(f"generation {newer.manifest['generation']}: {newer.rows.count:,} items")
        except Exception as error:  # whatever it is, a file that is still being copied may be why: it is tried again
            why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
            now = time.monotonic()
            self._failed = stamp, why, now + max(AGAIN, 9 * (now - began))  # a tenth of the time goes into it
            if why not in self._said:
                self._said.add(why)
                self.say(f"still serving generation {self._index.manifest['generation']}: {why}")
        finally:
            self._reopening.release()

    def about(self) -> dict[str, Any]:
        """What is served: size, type, recall, which kinds of queries it takes, and its labels if they are few."""
        index = self.index()
        made, labels = index.manifest, []
        if "labels" in made["columns"] and len(index.labels[0]) <= LABELS_TOLD:
            labels = sorted(index.labels[0])
        return {
            "index": self.folder.resolve().name,
            "generation": made["generation"],
            "manifest": index.mark,
            "count": index.rows.count,
            "dim": index.rows.dim,
            "metric": index.metric,
            "factory": index.about["factory"],
            "recall": None if index.exact else round(index.about["measured"]["recall"], 4),
            "items": made["modality"],
            "encoder": None if self.encoder is None else Path(self.encoder.name).name,  # not where it lies
            "takes": [m for m in ("text", "image") if self.encoder is not None and self.encoder.takes(m)],
            "labels": labels,
        }

    def ask(self, question: Question) -> dict[str, Any]:
        """Results as `retrieval search --json --explain` has them, the generation that they are of, and the milliseconds taken.

        Raises UserError for what cannot be answered, and Gone where the index was removed, or replaced by what cannot be served.
        """
        index = self.index()
        try:
            return self._answered(index, question)
        except Gone:
            self.index()
            with self._reopening:  # what took its place may just be opening
                newest = self._index
            if newest is index:
                if not self.gone:
                    self.say(f"answers 503: the files of generation {index.manifest['generation']} are gone too")
                self.gone = True
                raise
            self.gone = False
            return self._answered(newest, question)

    def _answered(self, index: Index, question: Question) -> dict[str, Any]:
        began = time.perf_counter()
        among = None if question.among is None else list(question.among)
        where = allowed(index, question.labels, among)
        names, vectors = self._queries(index, question)
        with self._searching:
            found = answer(index, vectors, question.k, radius=question.radius, where=where)
        results = [
            {"query": name, "hits": [plain(hit) for hit in best]}
            for name, best in zip(names, hits(index, found), strict=True)
        ]
        taken = round(1e3 * (time.perf_counter() - began), 2)
        which = {"generation": index.manifest["generation"], "manifest": index.mark}
        return {"results": results, "how": found.how, **which, "ms": taken}

    def _queries(self, index: Index, question: Question) -> tuple[list[str], Floats]:
        if question.vectors is not None:
            return self._given(index, question.vectors)
        if question.ids:
            rows = row_numbers(index, typed_ids(index.rows, list(question.ids)))
            return list(question.ids), index.rows.take(rows)
        if self.encoder is None:
            raise UserError("the encoder of this index is not known; ask by vectors or ids")
        if question.picture is None:
            texts = list(question.texts)
            blocks = [texts[at : at + BLOCK] for at in range(0, len(texts), BLOCK)]
            return texts, np.concatenate([self._texts(block) for block in blocks])
        picture, name = _decoded(question.picture), "the picture"
        return [name], self._texts.alone(lambda: self._encode([picture], [name]))

    def _encode(self, items: Sequence[Any], names: Sequence[str]) -> Floats:
        assert self.encoder is not None
        return encoded(self.encoder, items, names)

    def _given(self, index: Index, vectors: Floats) -> tuple[list[str], Floats]:
        names = [str(number) for number in range(len(vectors))]
        if vectors.shape[1] != index.rows.dim:
            raise UserError(
                f"vectors: are of {vectors.shape[1]} numbers, those of the index of {index.rows.dim}; ask with its encoder's"
            )
        refuse_bad_vectors(vectors, names)
        if index.metric == "cosine" and (other := not_unit(vectors)) is not None:
            raise UserError(f"vectors: {other[0]} has length {other[1]:.4g}, which cosine needs to be 1; divide by it")
        return names, vectors

    def picture(self, name: str) -> bytes | None:
        """A small JPEG of an item that is a picture, None for any other and where the file is gone."""
        index = self.index()
        if index.manifest["modality"] != "image" or "payload/path" not in index.manifest["columns"]:
            return None
        row = row_numbers(index, typed_ids(index.rows, [name]))
        found = picture_at(index.rows.describe(row)[2]["path"][0])
        if found is None:
            return None
        small = decode(found, SIDE)
        small.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=85)
        return buffer.getvalue()


def _decoded(content: bytes) -> Any:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            return decode(Path(file.name))
        except UserError as error:
            raise UserError(str(error).replace(file.name, "the picture").partition(";")[0]) from None


def _stamp(folder: Path) -> Stamp:
    """What tells one generation's manifest from the next, without reading it."""
    try:
        found = (folder / MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
