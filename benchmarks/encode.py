"""Encoding beside SentenceTransformer.encode, and beside the model's own forward pass on ready batches, which is the floor.

    RETRIEVAL_DATA=… python benchmarks/encode.py [--device cpu] [--parts texts images memory]

Texts: CoSQA's functions, BANKING77, Vaswani's abstracts, by all-MiniLM-L6-v2. Images: CIFAR-10's JPEG files, by a small
ResNet. All ways take turns in one run; figures are medians. Memory: the peak of `retrieval embed` on 100,000 and on a
million short texts, with an encoder of one layer.
"""

import argparse
import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import header
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import BertConfig, BertModel

from retrieval.cli.options import quiet_libraries
from retrieval.cpus import usable_cpus
from retrieval.data import Texts
from retrieval.embed import cost_of, embed
from retrieval.encode import Encoding
from retrieval.encoder import MINILM, Encoder, load_encoder
from retrieval.images import Images, read_images
from retrieval.train.vision import network

DATA = Path(os.environ.get("RETRIEVAL_DATA", "."))
Ways = dict[str, Callable[[], Any]]


def banking(count: int) -> list[str]:
    with open(next(DATA.glob("banking77/**/train.csv")), encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file)][:count]


def vaswani(count: int) -> list[str]:
    content = next(DATA.glob("vaswani/**/doc-text.trec")).read_text()
    return [" ".join(text.split()) for text in re.findall(r"</DOCNO>(.*?)</DOC>", content, re.DOTALL)][:count]


def cosqa(count: int) -> list[str]:
    with tarfile.open(next(DATA.glob("cosqa-retrieval/*.tar.gz"))) as archive:
        content = archive.extractfile("data/search/code_idx_map.txt")
        assert content is not None
        return list(json.load(content))[:count]


def take_turns(ways: Ways, rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


def report(what: str, count: int, unit: str, seconds: dict[str, float], floor: str, peer: str) -> None:
    print(f"\n{what}")
    for name, taken in seconds.items():
        ratios = f"{seconds[floor] / taken:6.3f} of the floor   {seconds[peer] / taken:6.3f} × encode"
        print(f"  {name:<52}{count / taken:9.1f} {unit}/s   {ratios}")


def texts_part(asked: argparse.Namespace) -> None:
    encoder = load_encoder(MINILM, asked.device)
    model = encoder.model
    ours = Encoding(model)
    others = {}
    if asked.device == "cpu":
        for compute in ("float32", "bfloat16"):
            others[f"Encoding.encode, backend openvino, {compute}"] = Encoding(
                model, backend="openvino", compute=compute
            )
    peer_batch = 32
    with tempfile.TemporaryDirectory() as place:
        for name, texts in (("BANKING77", banking(3000)), ("Vaswani", vaswani(1500)), ("CoSQA functions", cosqa(500))):
            texts = texts[: max(1, len(texts) // asked.divide)]
            ready = [(make(), len(batch)) for batch, make in ours.prepare_texts(texts).batches]
            masks = [features["attention_mask"] for features, _ in ready]
            order = sorted(texts, key=len, reverse=True)
            theirs = [
                model.preprocess(order[i : i + peer_batch])["attention_mask"] for i in range(0, len(order), peer_batch)
            ]
            real = sum(int(mask.sum()) for mask in masks)
            padding = [sum(mask.numel() - int(mask.sum()) for mask in those) / real for those in (masks, theirs)]
            sample = texts[:500]
            exact = model.encode(sample, normalize_embeddings=True)
            wrong = np.abs(ours.encode(sample) - exact).max()

            def bare(ready: list[Any] = ready) -> None:
                with torch.inference_mode():
                    for features, _ in ready:
                        model(ours._on_device(features))["sentence_embedding"]
                    if model.device.type == "cuda":
                        torch.cuda.synchronize()

            def store(texts: list[str] = texts) -> None:
                shutil.rmtree(Path(place) / "store", ignore_errors=True)
                embed(encoder, Texts({"text": texts}, None, None, ""), Path(place) / "store")

            ways: Ways = {
                "the model's forward pass on ready batches": bare,
                "Encoding.encode": lambda texts=texts: ours.encode(texts),  # type: ignore[misc]
                "embed, to a store on disk": store,
                f"SentenceTransformer.encode, batch_size {peer_batch}": lambda texts=texts: model.encode(  # type: ignore[misc]
                    texts, batch_size=peer_batch, normalize_embeddings=True
                ),
            }
            ways |= {label: lambda way=way, texts=texts: way.encode(texts) for label, way in others.items()}  # type: ignore[misc]
            seconds = take_turns(ways, asked.rounds)
            what = f"{name}: {len(texts):,} texts, {real / len(texts):.0f} tokens each; padding {padding[0]:.1%} beside encode's "
            names = list(ways)
            report(
                f"{what}{padding[1]:.1%}; largest difference {wrong:.1e}",
                len(texts),
                "texts",
                seconds,
                names[0],
                names[3],
            )
            for label, way in others.items():
                cost = cost_of(exact, way.encode(sample))
                print(
                    f"  {label}: cosine ≥ {cost['cosine_min']:.6f}, {cost['neighbours_kept']:.2%} of ten neighbours kept"
                )


def processes_part(asked: argparse.Namespace) -> None:
    """Two processes of one thread each, ours and encode's pool, against one process of two threads."""
    encoder = load_encoder(MINILM, "cpu")
    texts = banking(5000)[: 5000 // asked.divide]
    cores = usable_cpus()
    devices = ["cpu"] * cores
    pool = encoder.model.start_multi_process_pool(devices)
    with tempfile.TemporaryDirectory() as place:

        def store(devices: list[str]) -> None:
            shutil.rmtree(Path(place) / "store", ignore_errors=True)
            embed(
                encoder, Texts({"text": texts}, None, None, ""), Path(place) / "store", shard_rows=1024, devices=devices
            )

        ways: Ways = {
            f"embed, one process of {cores} threads": lambda: store(["cpu"]),
            f"embed, {cores} processes, their start included": lambda: store(devices),
            f"encode's pool of {cores} processes, started before": lambda: encoder.model.encode(
                texts, pool=pool, batch_size=32, normalize_embeddings=True
            ),
        }
        seconds = take_turns(ways, asked.rounds)
    encoder.model.stop_multi_process_pool(pool)
    names = list(ways)
    report(f"BANKING77, {len(texts):,} texts, all cores", len(texts), "texts", seconds, names[0], names[2])


def jpegs(folder: Path, count: int) -> None:
    with tarfile.open(next(DATA.glob("cifar10/*.tar.gz"))) as archive:
        files = (member for member in archive if member.name.endswith((".jpg", ".jpeg")))
        for number, member in zip(range(count), files, strict=False):
            content = archive.extractfile(member)
            assert content is not None
            (folder / f"{number:05}.jpg").write_bytes(content.read())


def enlarge(folder: Path, count: int) -> None:
    """The same pictures as if taken by a camera: 480 × 360."""
    jpegs(folder, count)
    for path in folder.iterdir():
        with Image.open(path) as picture:
            larger = picture.resize((480, 360))
        larger.save(path, quality=90)


def images_part(asked: argparse.Namespace) -> None:
    encoder = Encoder(network("small", 32, asked.device, 0).eval(), "small")
    model, ours = encoder.model, Encoding(encoder.model)
    for what, make_files, count in (("32 × 32", jpegs, 4000), ("480 × 360", enlarge, 1000)):
        count //= asked.divide
        with tempfile.TemporaryDirectory() as place:
            make_files(Path(place), count)
            images = read_images(Path(place))
            ready = [make() for _, make in ours.prepare_pictures(images).batches]

            def bare(ready: list[Any] = ready) -> None:
                with torch.inference_mode():
                    for features in ready:
                        model(ours._on_device(features))["sentence_embedding"]

            def prepared(images: Images = images) -> None:
                for _, make in ours.prepare_pictures(images).batches:
                    make()

            def encoded(images: Images = images) -> None:
                model.encode([images[row] for row in range(len(images))], batch_size=64, normalize_embeddings=True)

            ways: Ways = {
                "the model's forward pass on ready batches": bare,
                "decoding and preparing alone, one thread": prepared,
                "Encoding, from the files": lambda images=images: ours.run(ours.prepare_pictures(images)),  # type: ignore[misc]
                "SentenceTransformer.encode, from the files": encoded,
            }
            names = list(ways)
            seconds = take_turns(ways, asked.rounds)
            report(f"CIFAR-10: {count:,} JPEG files of {what}", count, "images", seconds, names[0], names[3])


def one_layer(folder: Path) -> None:
    """MiniLM's tokenizer before one layer of 32 dimensions."""
    torch.manual_seed(0)
    tokenizer = load_encoder(MINILM, "cpu").model.tokenizer
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    with tempfile.TemporaryDirectory() as parts:
        BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(parts)
        tokenizer.save_pretrained(parts)
        transformer = Transformer(parts)
    SentenceTransformer(modules=[transformer, Pooling(32), Normalize()], device="cpu").save_pretrained(str(folder))


def memory_part(asked: argparse.Namespace) -> None:
    words = " ".join(banking(2000)).lower().split()
    peaks = []
    print("\nPeak memory of `retrieval embed`, one layer of 32 dimensions, texts of six words with ids and labels")
    with tempfile.TemporaryDirectory() as place:
        one_layer(Path(place) / "encoder")
        for count in (100_000 // asked.divide, 1_000_000 // asked.divide):
            rng = np.random.default_rng(0)
            with open(Path(place) / "texts.csv", "w", encoding="utf-8", newline="") as file:
                file.write("id,label,text\n")
                for row, picked in enumerate(rng.integers(0, len(words), (count, 6)).tolist()):
                    file.write(f'k{row},c{row % 9},"{" ".join(words[p] for p in picked).replace(chr(34), "")}"\n')
            command = [
                sys.executable,
                "-c",
                MEASURED,
                "embed",
                "--encoder",
                f"{place}/encoder",
                "--data",
                f"{place}/texts.csv",
            ]
            started = time.perf_counter()
            run = subprocess.run(
                [*command, "--device", "cpu", "--output", f"{place}/store-{count}"],
                capture_output=True,
                text=True,
                check=True,
            )
            seconds = time.perf_counter() - started
            peaks.append(int(run.stdout.split()[-1]) / 1024)
            print(
                f"  {count:>9,} texts   {peaks[-1]:7.0f} MiB   {seconds:6.1f} s, {count / seconds:,.0f} texts/s with start"
            )
    print(f"  difference {peaks[1] - peaks[0]:.0f} MiB (target: within 100 MB)")


MEASURED = """
import re, sys
from retrieval.cli import cli
try:
    cli(sys.argv[1:], standalone_mode=False)
finally:  # not ru_maxrss, which begins with what the starting process had
    print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
"""
PARTS = {"texts": texts_part, "processes": processes_part, "images": images_part, "memory": memory_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--divide", type=int, default=1, help="a quick look: a part of the data")
    asked = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(usable_cpus())
    print(header())
    for part in asked.parts:
        PARTS[part](asked)


if __name__ == "__main__":
    main()
