"""Pictures and words: emoji, whose drawings of 2017 and of 2024 and whose names belong together; a fifth of them is never trained on.

    RETRIEVAL_DATA=… python benchmarks/emoji.py [--part styles|words] [--steps 200]

    styles    a small ResNet from scratch: the drawing of 2017 ↔ that of 2024, R@1 and MRR both ways among the unseen ones
    words     the same network beside all-MiniLM-L6-v2, which stays as it is: name and keywords ↔ drawing, both ways, and how often a
              caption is nearer its picture than one with a word changed by rule; trained without such captions, with one as a
              negative of its own picture, and with one as a negative of all

Losses at equal steps, three seeds unless asked otherwise, intervals over pairs; drawings are made 32 × 32 on white. RETRIEVAL_DATA/noto-emoji is read.
"""

import argparse
import json
import statistics
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import data_folder, header
from PIL import Image

from retrieval.cli.held import by_shown
from retrieval.cli.options import quiet_libraries
from retrieval.encoder import MINILM, Encoder, load_encoder
from retrieval.eval.compare import compare, paired
from retrieval.images import Images, Pairs, picture_at
from retrieval.images.decode import decode
from retrieval.train.joined import join
from retrieval.train.loss import named
from retrieval.train.pairs import PairConfig, train_pairs, with_hard_captions
from retrieval.train.vision import network

SIDE = 32
WIDTH = 46  # of a name in a table
Variants = dict[str, tuple[Pairs, str]]  # what is trained on, and by which loss
WORDS = 4  # name and first keywords of a caption
STYLES = {"2017": "v2017-blob/png/128", "2024": "v2024/png/72"}
SKIN = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
LOSSES = {
    "HCL, κ = 2, t = .1": "hn-nce(temperature=0.1, label_mask=False)",
    "HCL, κ = 5, t = .1": "hn-nce(temperature=0.1, kappa=5, label_mask=False)",
    "HCL, κ = 2, t = .03": "hn-nce(temperature=0.03, label_mask=False)",
    "InfoNCE, t = .1": "clip(temperature=0.1, label_mask=False)",
    "InfoNCE, t = .07": "clip(label_mask=False)",
    "SigLIP": "siglip(label_mask=False)",
}


def load(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The drawings of each style as files in `folder`, and the captions, of the emoji that have all three."""
    archive = data_folder() / "noto-emoji" / "noto-emoji.tar"
    with tarfile.open(archive) as tar:
        names = {member.name for member in tar if member.name.endswith((".png", ".json"))}
        told = json.load(tar.extractfile(next(n for n in names if n.endswith("emoji-en-US.json"))))  # type: ignore[arg-type]
    captions = {
        points(emoji): ", ".join(word.replace("_", " ") for word in words[:WORDS]) for emoji, words in told.items()
    }
    drawn: dict[str, dict[tuple[str, ...], str]] = {}
    for style, place in STYLES.items():
        here = [name for name in names if place in name and Path(name).name.startswith("emoji_u")]
        drawn[style] = {key(name): name for name in here}
    chosen = sorted(k for k in captions if all(k in each for each in drawn.values()) and not SKIN & set(k))
    files: dict[str, list[Path]] = {style: [] for style in STYLES}
    for style, each in drawn.items():
        for k in chosen:
            found = picture_at(f"{archive}/{each[k]}")
            assert found is not None
            files[style].append(folder / f"{style}-{'-'.join(k)}.png")
            decode(found).resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(files[style][-1])
    return files, [captions[k] for k in chosen]


def points(emoji: str) -> tuple[str, ...]:
    return tuple(f"{ord(c):x}" for c in emoji if ord(c) != 0xFE0F)


def key(name: str) -> tuple[str, ...]:
    return tuple(part.lstrip("0") for part in Path(name).stem.removeprefix("emoji_u").split("_") if part != "fe0f")


def of_pictures(paths: list[Path]) -> Images:
    return Images(list(paths), None, f"{len(paths):,} drawings")


def split(count: int) -> tuple[list[int], list[int]]:
    order = np.random.default_rng(0).permutation(count).tolist()
    return sorted(order[: count * 4 // 5]), sorted(order[count * 4 // 5 :])


def compared(
    title: str, test: Pairs, variants: Variants, fresh: Callable[[int], Encoder], config: PairConfig, seeds: int
) -> None:
    """Train each way with each seed; means, and paired differences to the first."""
    held = by_shown(test)
    print(f"\n{title}: {len(test):,} unseen pairs; {config.steps} steps of {config.batch_size}")
    tables: dict[str, list[Any]] = {"before": [held.judge(fresh(seed)) for seed in range(seeds)]}
    for name, (train, loss) in variants.items():
        for seed in range(seeds):
            encoder = fresh(seed)
            train_pairs(encoder.model, train, replace(config, seed=seed), named(loss), source="emoji")
            tables.setdefault(name, []).append(held.judge(Encoder(encoder.model, "")))
            told = "  ".join(
                f"{metric} {value:.4f}" for metric, value in tables[name][-1].means().items() if metric in held.shown
            )
            print(f"  {name:<{WIDTH}} seed {seed}  {told}", flush=True)
    first = next(iter(variants))
    for metric in held.shown:
        print(f"\n  {metric}")
        for name, runs in tables.items():
            line = f"    {name:<{WIDTH}} {statistics.mean(run.means()[metric] for run in runs):.4f}"
            if name != first:
                sides, _ = paired([runs, tables[first]])
                found = compare(sides[0], sides[1], metric)
                line += f"   {first} − it: {found.difference:+.4f} [{found.interval[0]:+.4f}, {found.interval[1]:+.4f}] {found.verdict()}"
            print(line, flush=True)


def styles(files: dict[str, list[Path]], captions: list[str], asked: argparse.Namespace) -> None:
    train, test = (
        Pairs({name: of_pictures([files[style][row] for row in part]) for name, style in zip(("anchor", "positive"), STYLES, strict=True)}, "")
        for part in split(len(captions))
    )  # fmt: skip

    def fresh(seed: int) -> Encoder:
        return Encoder(network("small", SIDE, "cpu", seed), "small")

    config = PairConfig(steps=asked.steps, batch_size=128, scratch=True, augment="light")
    variants = {name: (train, LOSSES[name]) for name in asked.loss or LOSSES}
    compared("Drawings of 2017 ↔ 2024", test, variants, fresh, config, asked.seeds)


def words(files: dict[str, list[Path]], captions: list[str], asked: argparse.Namespace) -> None:
    train, test = (
        Pairs({"anchor": of_pictures([files[style][row] for style in STYLES for row in part]), "positive": [captions[row] for _ in STYLES for row in part]}, "")
        for part in split(len(captions))
    )  # fmt: skip
    changed = with_hard_captions(train, 1)
    share = statistics.mean(bool(caption) for caption in changed.columns["negative_1"])
    print(f"\n{share:.0%} of the {len(train):,} captions to train on have a word that can be changed")

    def fresh(seed: int) -> Encoder:
        torch.manual_seed(seed)
        text = load_encoder(MINILM, "cpu").model
        return Encoder(join(network("small", SIDE, "cpu", seed), text, frozen="text"), "joined")

    config = PairConfig(steps=asked.steps, batch_size=64, image_rate=1e-3, augment="light", freeze="text")
    chosen = asked.loss or list(LOSSES)
    variants = {name: (train, LOSSES[name]) for name in chosen}
    for name in chosen[:1] + [name for name in chosen[1:] if name.startswith("InfoNCE")][:1]:
        loss = LOSSES[name]
        variants[f"{name}, a changed caption each"] = (changed, loss.replace(")", ", own_negatives=True)"))
        variants[f"{name}, the same for all pictures"] = (changed, loss)
    compared("Names ↔ drawings", with_hard_captions(test, 1), variants, fresh, config, asked.seeds)


PARTS = {"styles": styles, "words": words}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--loss", choices=LOSSES, action="append")
    asked = parser.parse_args()
    data_folder()  # before anything is printed
    quiet_libraries()
    print(header(), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        files, captions = load(Path(scratch))
        for name in asked.part or PARTS:
            PARTS[name](files, captions, asked)


if __name__ == "__main__":
    main()
