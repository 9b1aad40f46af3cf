"""Running an encoder at the speed of its model.

Texts are tokenised a block at a time, equal ones once, and batched by their number of tokens, so that almost nothing is
padding; pictures are decoded by threads. On a GPU batches are pinned and copied while the model runs, the next block is
tokenised meanwhile, and nothing waits for a block's results before the next block's batches are given to the GPU.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from retrieval.cpus import usable_cpus
from retrieval.errors import UserError
from retrieval.images import Cell, Images, Span, as_seen
from retrieval.pixels import least_side
from retrieval.routes import reader
from retrieval.tokens import (
    CPU_TOKENS,
    GPU_TOKENS,
    ROLES,
    Features,
    Ints,
    batches_by_length,
    pad,
    prompt_of,
    tokenise,
    tokenises_apart,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Floats = NDArray[np.float32]
Batches = list[tuple[Ints, Callable[[], Features]]]
T = TypeVar("T")
COMPUTE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BLOCK = 4096  # items that are tokenised, sorted and freed of repeats together: as many as a full shard has
AHEAD = 2  # batches prepared ahead, by each thread


@dataclass(frozen=True)
class Prepared:
    """A block ready to run: for each batch which of the distinct items it holds, and what makes its features.

    inverse: (n,) the distinct item of each of the block's items. work: of each batch, in any unit.
    """

    batches: Batches
    inverse: Ints
    work: list[int]


class Encoding:
    """How blocks of texts or pictures become unit vectors: `run(prepare(items))`, float32 on the CPU.

    compute: the type in which the model runs; vectors are normalised in float32. backend: "torch", or "openvino" on a CPU.
    role: what texts are, "query" or "document", for encoders with prompts for those.
    Where a batch is too large for the device it is halved, and later ones are made smaller.
    """

    def __init__(
        self,
        model: "SentenceTransformer",
        *,
        compute: str = "float32",
        backend: str = "torch",
        batch_size: int = 64,
        role: str | None = None,
    ) -> None:
        if backend == "openvino" and model.device.type != "cpu":
            raise UserError(f"--backend openvino: runs on the CPU, not on {model.device}; add --device cpu")
        if role not in (None, *ROLES):
            raise UserError(f"role {role!r}: unknown; known are {', '.join(ROLES)}")
        self.model = model.eval().to(COMPUTE[compute if backend == "torch" else "float32"])
        self.compute, self.backend, self.batch_size, self.role = compute, backend, batch_size, role
        self.tokens, self.enough = CPU_TOKENS if model.device.type == "cpu" else GPU_TOKENS
        self.threads = usable_cpus()
        self._compiled: Callable[[Features], Tensor] | None = None

    def encode(self, items: Sequence[Any], progress: Callable[[int], None] = lambda rows: None) -> Floats:
        """Unit vectors (n, dim) of any number of texts or pictures, in blocks as `embed` makes them."""
        prepare = self.prepare_texts if isinstance(items[0], str) else self.prepare_pictures
        starts = range(0, len(items), BLOCK)
        return self.run_all((partial(prepare, items[start : start + BLOCK]) for start in starts), progress)

    def run_all(
        self, blocks: Iterable[Callable[[], Prepared]], progress: Callable[[int], None] = lambda rows: None
    ) -> Floats:
        """Unit vectors (n, dim) of blocks, given by what prepares each: a thread, for a GPU while it runs the block before,
        whose vectors are waited for when the GPU has this one."""
        ahead = 0 if self.model.device.type == "cpu" else 1  # why a CPU waits: see `_features`
        with ThreadPoolExecutor(1) as reader:
            prepared = ahead_of((reader.submit(block) for block in blocks), ahead)
            running = (self.start(each.result(), progress) for each in prepared)
            return np.concatenate([vectors() for vectors in ahead_of(running, ahead)])

    def prepare_texts(self, texts: Sequence[str]) -> Prepared:
        """Tokenise the distinct texts and batch them by length."""
        distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        inverse = np.array([distinct[text] for text in texts])
        batches, lengths = self._text_batches(list(distinct))
        return Prepared(batches, inverse, [len(batch) * int(lengths[batch[0]]) for batch, _ in batches])

    def prepare_pictures(self, pictures: Any) -> Prepared:
        """Batch pictures, which are taken by row number, and so decoded, when their turn is near: JPEGs at no more than
        `at_least` has a use for."""
        if isinstance(pictures[0] if isinstance(pictures, list) else None, Path | Span | Cell):
            pictures = Images(list(pictures), None, "")
        if isinstance(pictures, Images):
            pictures = replace(pictures, at_least=self.at_least)
        rows = np.arange(len(pictures))
        batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        makers: Batches = [(batch, partial(self._pictures, pictures, batch)) for batch in batches]
        return Prepared(makers, rows, [len(batch) for batch in batches])

    @cached_property
    def at_least(self) -> int | None:
        """How large JPEGs are decoded at least."""
        return least_side(self.model)

    def _pictures(self, pictures: Any, batch: Ints) -> Features:
        some = [pictures[row] for row in batch.tolist()]
        if not isinstance(pictures, Images):  # whose are decoded so
            some = [as_seen(each) if isinstance(each, Image.Image) else each for each in some]
        return self.model.preprocess(some)

    def _text_batches(self, texts: list[str]) -> tuple[Batches, Ints]:
        """Batches of texts, each beginning with its longest, and the texts' lengths."""
        prompt = prompt_of(self.model, self.role)
        if not tokenises_apart(self.model):
            lengths = np.array([len(text) for text in texts])  # characters; a token has about four
            batches: Batches = [
                (batch, partial(self.model.preprocess, [texts[row] for row in batch.tolist()], prompt=prompt))
                for batch in batches_by_length(lengths, 4 * self.tokens, 4 * self.enough)
            ]
            return batches, lengths
        tokens, tokenizer = tokenise(self.model, texts, prompt), reader(self.model, "text").tokenizer
        found = batches_by_length(tokens.lengths, self.tokens, self.enough)
        return [(batch, partial(pad, tokens, batch, tokenizer)) for batch in found], tokens.lengths

    def run(self, prepared: Prepared, progress: Callable[[int], None] = lambda rows: None) -> Floats:
        """Unit vectors (n, dim) of a block."""
        return self.start(prepared, progress)()

    def start(self, prepared: Prepared, progress: Callable[[int], None] = lambda rows: None) -> Callable[[], Floats]:
        """Give a block to the device. What is returned waits for the unit vectors (n, dim), in whatever thread calls it.

        `progress` is told the items given since it was last called: since the longest come first, as many as there would be
        for the work done if all were equally long."""
        rows = [batch for batch, _ in prepared.batches]
        done = np.round(len(prepared.inverse) * np.cumsum([0, *prepared.work]) / sum(prepared.work)).astype(int)
        vectors = []
        with torch.inference_mode():
            for batch, features, items in zip(rows, self._features(prepared), np.diff(done).tolist(), strict=True):
                vectors.append(self._forward(features, len(batch)))
                progress(items)
            distinct = _copied(torch.cat(vectors))
        places = np.argsort(np.concatenate(rows))  # of each distinct item among the batches'
        return lambda: distinct()[places[prepared.inverse]]

    def _features(self, prepared: Prepared) -> Iterator[Features]:
        """The batches' features on the device. Threads make them, for a GPU while it runs, for a CPU before all its cores
        run the model: the two would only take turns there, and be slower than one after the other."""
        makers = [make for _, make in prepared.batches]
        with ThreadPoolExecutor(self.threads) as pool:
            if self.model.device.type == "cpu":
                for start in range(0, len(makers), self.threads):
                    for features in list(pool.map(_made, makers[start : start + self.threads])):
                        yield self._on_device(features)
            else:
                pin = self.model.device.type == "cuda"
                for future in ahead_of((pool.submit(_made, make, pin) for make in makers), AHEAD * self.threads):
                    yield self._on_device(future.result())

    def _on_device(self, features: Features) -> Features:
        device, dtype = self.model.device, self.model.dtype

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(device, dtype if value.is_floating_point() else None, non_blocking=True)

        return {name: move(value) for name, value in features.items()}

    def _embeddings(self, features: Features) -> Tensor:
        if self.backend == "torch":
            return self.model(dict(features))["sentence_embedding"]  # type: ignore[no-any-return]
        if self._compiled is None:
            from retrieval.openvino import compile_encoder

            self._compiled = compile_encoder(self.model, features, self.compute, torch.get_num_threads())
        return self._compiled(features)

    def _forward(self, features: Features, count: int) -> Tensor:
        try:
            vectors = self._embeddings(features)
        except torch.OutOfMemoryError:
            if count == 1:
                raise UserError(
                    f"--device {self.model.device}: one item alone does not fit its memory; use another device"
                ) from None
        else:
            if self.model.truncate_dim is not None:
                vectors = vectors[:, : self.model.truncate_dim]
            return torch.nn.functional.normalize(vectors.float(), dim=1)
        torch.cuda.empty_cache()
        self.tokens, self.enough = max(1, self.tokens // 2), max(1, self.enough // 2)
        self.batch_size = max(1, self.batch_size // 2)
        half = count // 2
        return torch.cat([self._forward(*_cut(features, count, part)) for part in (slice(half), slice(half, None))])


def ahead_of(items: Iterator[T], count: int) -> Iterator[T]:
    """The items, each drawn from its iterator `count` items before it is given out: futures that are made so run ahead."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def _cut(features: Features, count: int, part: slice) -> tuple[Features, int]:
    """Some items of a batch."""
    cut = {
        name: value[part] if isinstance(value, Tensor) and value.ndim and len(value) == count else value
        for name, value in features.items()
    }
    return cut, len(range(count)[part])


def _copied(vectors: Tensor) -> Callable[[], Floats]:
    """What waits for a copy of them in the CPU's memory: for this one only, not for what the GPU is given later."""
    if vectors.device.type != "cuda":
        here = vectors.cpu().numpy()
        return lambda: here
    pinned = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
    pinned.copy_(vectors, non_blocking=True)
    arrived = torch.cuda.current_stream(vectors.device).record_event()

    def wait() -> Floats:
        arrived.synchronize()
        return pinned.numpy()

    return wait


def _made(make: Callable[[], Features], pin: bool = False) -> Features:
    features = make()
    if not pin:
        return features
    return {name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in features.items()}
