"""Every text of the data sets in RETRIEVAL_DATA, once, and their MiniLM embeddings; clustered vectors of any number."""

import csv
import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

DATA = Path(os.environ.get("RETRIEVAL_DATA", "."))


def every_text() -> list[str]:
    """Distinct texts, in the order of the sets: some seventy thousand."""
    texts = (" ".join(text.split()) for text in _texts())
    return list(dict.fromkeys(text for text in texts if text))


def _texts() -> Iterator[str]:
    for path in sorted(DATA.glob("banking77/banking_data/*.csv")):
        with open(path, encoding="utf-8") as file:
            yield from (row["text"] for row in csv.DictReader(file))
    for path in sorted(DATA.glob("sent-conv/data/*.*")):
        if path.suffix in (".all", ".train", ".dev", ".test"):
            yield from (line.partition(" ")[2] for line in path.read_text(encoding="latin-1").splitlines())
    for path in sorted(DATA.glob("snli-devtest/dataset/**/s[12].*")):
        yield from path.read_text(encoding="utf-8").splitlines()
    for path in sorted(DATA.glob("stsb/data/*.csv")):
        with open(path, encoding="utf-8") as file:
            yield from (text for row in csv.reader(file) for text in row[:2])
    for path in sorted(DATA.glob("sugar-crepe/data/*.json")):
        for pair in json.loads(path.read_text()).values():
            yield from (pair["caption"], pair["negative_caption"])
    for path in sorted(DATA.glob("cosqa-retrieval/*.tar.gz")):
        with tarfile.open(path) as archive:
            content = archive.extractfile("data/search/code_idx_map.txt")
            assert content is not None
            yield from json.load(content)
    for path in sorted(DATA.glob("vaswani/**/doc-text.trec")):
        yield from re.findall(r"</DOCNO>(.*?)</DOC>", path.read_text(), re.DOTALL)
    for path in sorted(DATA.glob("cranfield/cran.all.1400.xml")):
        yield from re.findall(r"<text>(.*?)</text>", path.read_text(), re.DOTALL)


def embedded_texts(cache: Path) -> np.ndarray:
    """(n, 384) float32 unit vectors of every text, made once and kept in a file."""
    if not cache.exists():
        from retrieval.encode import Encoding
        from retrieval.encoder import MINILM, load_encoder

        vectors = Encoding(load_encoder(MINILM).model, backend="openvino").encode(every_text())
        np.save(cache, vectors)
    return np.load(cache)


def clustered(count: int, dim: int, seed: int = 0, centres: int = 4096, spread: float = 0.6) -> np.ndarray:
    """Unit vectors around `centres` that lie in a space of fewer dimensions, as embeddings do."""
    rng = np.random.default_rng(12345)
    inner = rng.standard_normal((dim // 4, dim)).astype(np.float32) / np.float32((dim / 4) ** 0.5)
    middles = rng.standard_normal((centres, dim // 4)).astype(np.float32) @ inner
    rng = np.random.default_rng(seed)
    found = np.empty((count, dim), np.float32)
    for start in range(0, count, 65_536):
        block = found[start : start + 65_536]
        near = rng.standard_normal((len(block), dim // 4)).astype(np.float32) @ inner
        block[:] = middles[rng.integers(0, centres, len(block))] + np.float32(spread) * near
        block += np.float32(0.1) * rng.standard_normal(block.shape, dtype=np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return found
