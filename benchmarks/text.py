"""Fine-tuning text encoders: how fast a step is beside sentence-transformers' trainer, and what training does on real data.

    python benchmarks/text.py                    # every part that a CPU can do, in about two hours on two cores
    python benchmarks/text.py --part step        # one of: step, mining, banking, snli, cosqa, sentences, gpu

    step        a step of ours and of SentenceTransformerTrainer with MultipleNegativesRankingLoss, on the same pairs in turns;
                what of a step is outside the model
    mining      `retrieval mine` and sentence-transformers' mine_hard_negatives on the same pairs: seconds and agreement
    banking     BANKING77, whole MiniLM: HCL, InfoNCE, and sentence-transformers' MNRL and its hardness modes at equal steps
    snli        SNLI triplets, contradiction as hard negative; Spearman on STS-B before and after
    cosqa       docstring → code; web queries among all functions, nDCG@10 and MRR
    sentences   the paper's sentence tasks: SimCSE-style views by dropout, linear readout on MR, CR, SUBJ, MPQA, TREC
    gpu         an encoder of 110 million parameters, bfloat16, batches of 4,096 through GradCache, beside cached MNRL

Needs RETRIEVAL_DATA, the folder of data sets. Steps are few, so that a laptop can do it: the figures compare losses at equal work, and
are not the best that each could reach.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import text_tasks as tasks
import torch
from datasets import Dataset
from machine import data_folder, header
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from transformers import TrainerCallback

from retrieval.cli.held import HeldOut, by_classes, by_scores
from retrieval.cli.options import quiet_libraries
from retrieval.data import Texts
from retrieval.encoder import MINILM, Encoder, load_encoder
from retrieval.eval.compare import compare, paired
from retrieval.train.batches import Plan
from retrieval.train.collate import Collator, Shares
from retrieval.train.loss import LossConfig, named
from retrieval.train.sentence_loss import SentenceLoss
from retrieval.train.text import TextConfig, _sources, plan_batches, train_text
from retrieval.train.whole import train_whole

SEEDS = (0, 1, 2)


class Theirs(SentenceLoss):
    """sentence-transformers' own loss of the same embeddings, batches and steps."""

    def __init__(self, model: SentenceTransformer, steps: int, **settings: Any) -> None:
        super().__init__(model, named("infonce(label_mask=False)"), steps)
        self.their = MultipleNegativesRankingLoss(model, **settings)

    def of_texts(self, chunks: list[torch.Tensor], batch: dict[str, torch.Tensor]) -> torch.Tensor:
        pairs = len(batch["items"]) // 2
        texts = torch.cat(chunks)[batch["order"]]
        columns = [texts[start : start + pairs] for start in range(0, len(texts), pairs)]
        loss: torch.Tensor = self.their.compute_loss_from_embeddings(columns, None)
        self.curve.append({"loss": float(loss.detach())})
        return loss


def trained(data: Texts, how: str | dict[str, Any], config: TextConfig) -> Encoder:
    """MiniLM trained with a loss of ours by its name, or with sentence-transformers' MNRL and these settings."""
    encoder = load_encoder(MINILM)
    if isinstance(how, str):
        train_text(encoder.model, data, config, named(how), source="data")
        return Encoder(encoder.model, MINILM)
    loss = named("infonce")  # balanced batches where there are labels, as ours
    plans = [plan_batches(data, config, loss, "data", encoder.model)]
    torch.manual_seed(config.seed)
    collator = Collator(encoder.model, _sources(encoder.model, [data], plans, None, config))
    for source in collator.sources:
        object.__setattr__(source, "prompts", (None, None))
    steps = plans[0].steps
    with tempfile.TemporaryDirectory() as scratch:
        train_whole(encoder.model, collator, Theirs(encoder.model, steps, **how), config, steps, Path(scratch))
    return Encoder(encoder.model, MINILM)


def compared(title: str, data: Texts, held: dict[str, HeldOut], methods: dict[str, Any], config: TextConfig, seeds: tuple[int, ...] = SEEDS) -> None:  # fmt: skip
    """Train with each method and seed, judge, and print means and paired differences to the first method."""
    print(
        f"\n{title}: {config.steps} steps of {config.batch_size} pairs, learning rate {config.lr:g}, seeds {seeds}",
        flush=True,
    )
    start = load_encoder(MINILM)
    before = {name: each.judge(start) for name, each in held.items()}
    tables: dict[str, dict[str, list[Any]]] = {}
    for method, how in methods.items():
        for seed in seeds:
            began = time.perf_counter()
            encoder = trained(data, how, TextConfig(**{**vars(config), "seed": seed}))
            seconds = time.perf_counter() - began
            for name, each in held.items():
                tables.setdefault(name, {}).setdefault(method, []).append(each.judge(encoder))
            told = "  ".join(f"{m} {tables[n][method][-1].means()[m]:.4f}" for n, h in held.items() for m in h.shown)
            print(f"  {method:<34} seed {seed}  {seconds:5.0f} s  {told}", flush=True)
    for name, each in held.items():
        for metric in each.shown:
            print(f"\n  {name} {metric}: before {before[name].means()[metric]:.4f}")
            first = next(iter(methods))
            for method in methods:
                runs = tables[name][method]
                mean = statistics.mean(run.means()[metric] for run in runs)
                line = f"    {method:<34} {mean:.4f}"
                if method != first:
                    sides, _ = paired([runs, tables[name][first]])
                    found = compare(sides[0], sides[1], metric)
                    low, high = found.interval
                    line += f"   {first} − it: {found.difference:+.4f} [{low:+.4f}, {high:+.4f}] {found.verdict()}"
                print(line, flush=True)


ONE_WAY = "hcl(temperature=0.05, directions='forward', within_side=False, label_mask=False)"
MNRL: dict[str, dict[str, Any]] = {"MNRL, scale 20": {}}
HARDNESS = {
    f"MNRL, in-batch hardness {s}": {"hardness_mode": "in_batch_negatives", "hardness_strength": s} for s in (5.0, 9.0)
}
OF_PAIRS: dict[str, Any] = {
    "HCL, κ = 2": "hcl(label_mask=False)",
    "InfoNCE, t = .1": "infonce(label_mask=False)",
    "HCL, κ = 2, t = .05": "hcl(temperature=0.05, label_mask=False)",
    "InfoNCE, t = .05": "infonce(temperature=0.05, label_mask=False)",
    "HCL, κ = 2, t = .05, one direction": ONE_WAY,
    "MNRL, scale 20": {},
}


def chosen(methods: dict[str, Any], asked: argparse.Namespace) -> dict[str, Any]:
    return {name: methods[name] for name in asked.method or methods}


def banking(asked: argparse.Namespace) -> None:
    train, test = tasks.banking("train"), tasks.banking("test")
    methods = {
        "HCL, κ = 2": "hcl",
        "InfoNCE, t = .1": "infonce",
        "HCL, κ = 2, t = .05": "hcl(temperature=0.05)",
        **MNRL,
        **HARDNESS,
    }
    config = TextConfig(steps=asked.steps or 30, batch_size=64, lr=asked.lr or 5e-5)
    compared("BANKING77, whole encoder", train, {"test": by_classes(test)}, chosen(methods, asked), config)


def snli(asked: argparse.Namespace) -> None:
    config = TextConfig(steps=asked.steps or 40, batch_size=64, lr=asked.lr or 2e-5)
    compared(
        "SNLI triplets", tasks.snli(), {"STS-B test": by_scores(tasks.stsb("test"))}, chosen(OF_PAIRS, asked), config
    )


def cosqa(asked: argparse.Namespace) -> None:
    data, held = tasks.cosqa()
    config = TextConfig(steps=asked.steps or 40, batch_size=32, lr=asked.lr or 2e-5)
    compared("CoSQA, docstring → code", data, {"web queries": held}, chosen(OF_PAIRS, asked), config)


def sentences(asked: argparse.Namespace) -> None:
    """Unsupervised, then a linear readout of each task; MR, CR, SUBJ, MPQA by five folds, TREC on its test part."""
    lines = tasks.sentence_lines()
    config = TextConfig(steps=asked.steps or 60, batch_size=64, lr=asked.lr or 1e-5)
    print(
        f"\nSentence tasks: SimCSE-style, {config.steps} steps of {config.batch_size} sentences of all five; accuracy of a linear readout"
    )
    settings = {"before": None, "HCL, κ = 1, t = .05": "hcl(kappa=1, temperature=0.05, label_mask=False)", "HCL, κ = 2": "hcl(label_mask=False)", "InfoNCE, t = .05": "infonce(temperature=0.05, label_mask=False)", "InfoNCE, t = .1": "infonce(label_mask=False)"}  # fmt: skip
    for name, loss in settings.items():
        found = []
        for seed in SEEDS if loss else (0,):
            encoder = load_encoder(MINILM) if loss is None else trained(lines, loss, TextConfig(**{**vars(config), "seed": seed}))  # fmt: skip
            found.append(tasks.readouts(encoder))
        means = {task: statistics.mean(each[task] for each in found) for task in found[0]}
        spread = max(max(each["mean"] for each in found) - min(each["mean"] for each in found), 0)
        print(f"  {name:<22}" + "  ".join(f"{task} {value:.4f}" for task, value in means.items()) + f"  (seeds differ by {spread:.4f})", flush=True)  # fmt: skip


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self.times:
            self.times.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())

    @property
    def steps(self) -> list[float]:
        return np.diff(self.times).tolist()  # type: ignore[no-any-return]


def their_steps(name: str, data: Texts, count: int, batch: int, loss: Callable[[SentenceTransformer], Any], **settings: Any) -> list[float]:  # fmt: skip
    """Seconds of each step of SentenceTransformerTrainer."""
    model, clock = load_encoder(name).model, Clock()
    model.model_card_data.widget = [{"text": ""}]
    with tempfile.TemporaryDirectory() as scratch:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=scratch, max_steps=count, per_device_train_batch_size=batch, learning_rate=2e-5, seed=0, save_strategy="no",
            report_to="none", disable_tqdm=True, use_cpu=not torch.cuda.is_available(), logging_strategy="no", **settings,
        )  # fmt: skip
        columns = {name: list(column) for name, column in data.columns.items()}
        trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=loss(model), callbacks=[clock])  # fmt: skip
        trainer.train()
    return clock.steps


def our_steps(
    name: str, data: Texts, count: int, batch: int, loss: LossConfig, *, alone: bool = True, **settings: Any
) -> tuple[list[float], list[float]]:
    """Seconds of each step of ours, and if `alone`, of the encoder alone on the same chunks, forward and backward."""
    config = TextConfig(steps=count, batch_size=batch, lr=2e-5, **settings)
    model = load_encoder(name).model
    plans = [plan_batches(data, config, loss, "data", model)]
    times: list[float] = []
    began = [time.perf_counter()]

    def progress(_: Any) -> None:  # called when a step's loss is known: one step after the other
        now = time.perf_counter()
        times.append(now - began[0])
        began[0] = now

    bare = _bare(model, data, plans, config) if alone else []  # before and after: a shared machine's speed drifts
    train_text(model, data, config, loss, source="data", plans=plans, progress=progress)
    return times[1:], bare + (_bare(model, data, plans, config) if alone else [])


def to_device(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _bare(model: SentenceTransformer, data: Texts, plans: list[Plan], config: TextConfig) -> list[float]:
    """Seconds of the encoder alone, forward and backward, on each batch's chunks; the first batch warms up."""
    sources, bare = _sources(model, [data], plans, None, config), []
    for share in Shares(sources, plans[0].steps):
        model.train()
        chunks = Collator(model, sources, config.mini_batch_size)(share)["chunks"]
        chunks = [{name: to_device(value, model.device) for name, value in chunk.items()} for chunk in chunks]
        started = time.perf_counter()
        torch.cat([model(dict(chunk))["sentence_embedding"] for chunk in chunks]).sum().backward()
        wait(model.device)
        bare.append(time.perf_counter() - started)
        model.zero_grad()
    return bare[1:]


def step(asked: argparse.Namespace) -> None:
    """The same pairs, in turns; the first steps of each turn are not counted. On a GPU in bfloat16 too."""
    there = torch.cuda.is_available()
    count, first = (30, 8) if there else (4, 1)
    for name, data, batch in (("BANKING77 pairs", tasks.banking_pairs(), 64), ("SNLI pairs", tasks.snli(pairs=True), 64), ("CoSQA docstring, code", tasks.cosqa()[0], 16)):  # fmt: skip
        for half in (False, True) if there else (False,):
            theirs: list[float] = []
            ours: list[float] = []
            bare: list[float] = []
            for _ in range(2 if there else 3):
                theirs += their_steps(MINILM, data, count, batch, MultipleNegativesRankingLoss, bf16=half)[first:]
                found = our_steps(MINILM, data, count if there else 8, batch, named("hcl(label_mask=False)"), compute="bfloat16" if half else "float32")  # fmt: skip
                ours, bare = ours + found[0][first:], bare + found[1]
            mine, model, other = (statistics.median(each) for each in (ours, bare, theirs))
            alone = f", the model alone on the same chunks {1e3 * model:,.0f} ms ({1 - model / mine:.1%} outside it)"
            print(
                f"{name}, {batch} pairs a step{', bfloat16' if half else ''}: ours {1e3 * mine:,.1f} ms{'' if half else alone}; "
                f"SentenceTransformerTrainer with MNRL {1e3 * other:,.1f} ms, {other / mine:.2f} ×",
                flush=True,
            )


def mining(asked: argparse.Namespace) -> None:
    """Each anchor once, as theirs assumes; embeddings are part of the time, search and choice are told apart."""
    tasks.mining_beside_peer(MINILM)


def gpu(asked: argparse.Namespace) -> None:
    """Samples a second and peak memory of a BERT-base-sized encoder from scratch; weights do not matter for either."""
    if not torch.cuda.is_available():
        print("gpu: there is no CUDA device here")
        return
    with tempfile.TemporaryDirectory() as folder:
        tasks.base_sized(Path(folder))
        data, name = tasks.banking_pairs(5 * 4096), str(Path(folder) / "encoder")
        for who, run in {
            "ours, HCL through GradCache": lambda: our_steps(name, data, 5, 4096, named("hcl(label_mask=False)"), alone=False, mini_batch_size=256, compute="bfloat16")[0],
            "CachedMNRL": lambda: their_steps(name, data, 5, 4096, lambda model: CachedMultipleNegativesRankingLoss(model, mini_batch_size=256), bf16=True),
        }.items():  # fmt: skip
            torch.cuda.reset_peak_memory_stats()
            seconds = statistics.median(run()[1:])
            print(
                f"{who}: {4096 / seconds:,.0f} pairs/s, {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB",
                flush=True,
            )


PARTS = {
    "step": step,
    "mining": mining,
    "banking": banking,
    "snli": snli,
    "cosqa": cosqa,
    "sentences": sentences,
    "gpu": gpu,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--method", action="append", help="of a part that compares losses: only those, by name")
    parser.add_argument("--steps", type=int, help="training steps, instead of each part's own")
    parser.add_argument("--lr", type=float, help="learning rate of parts that compare losses, likewise")
    asked = parser.parse_args()
    data_folder()  # before anything is printed
    quiet_libraries()
    print(header(), flush=True)
    for name in asked.part or PARTS:
        PARTS[name](asked)


if __name__ == "__main__":
    main()
