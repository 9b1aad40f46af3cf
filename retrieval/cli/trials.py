"""The trials of a sweep: what is trained on and judged by, one training run, and the record that a killed sweep goes on from."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from retrieval.artifact import settle
from retrieval.errors import UserError

from .held import HeldOut, by_classes, by_pairs
from .output import progress

if TYPE_CHECKING:
    from retrieval.data import Texts
    from retrieval.encoder import Encoder
    from retrieval.eval.values import PerQuery
    from retrieval.images import Images
    from retrieval.neighbors import Floats
    from retrieval.train.batches import Plan
    from retrieval.train.curve import Curve
    from retrieval.train.loss import LossConfig

RECORD = "trials.jsonl"


class Trainer(NamedTuple):
    """train: a loss and a seed → what the trained encoder makes of the held-out items (u, d), and the training curve;
    untrained: what the encoder makes of them as it is."""

    train: "Callable[[LossConfig, int], tuple[Floats, Curve]]"
    untrained: "Callable[[], Floats]"


def parts(data: "Texts | Images", held_out: "Texts | Images | None", source: str, seed: int) -> "tuple[Any, HeldOut]":
    """The data to train on, and what to judge by: a fifth of `data`, or `held_out` if that is given."""
    from retrieval.data import Texts

    if (
        isinstance(data, Texts)
        and data.is_pairs
        and (held_out is None or isinstance(held_out, Texts) and held_out.is_pairs)
    ):
        return _pairs(data, held_out, source, seed)
    from retrieval.eval.sweep import hold_out
    from retrieval.train.batches import as_codes

    train, judged = data, held_out
    if judged is None:
        assert data.labels is not None
        rows, others = _or_source(lambda: hold_out(as_codes(data.labels or []), seed), source)
        train, judged = data.take(rows.tolist()), data.take(others.tolist())
    return train, _labelled(train, judged)


def _or_source(split: Callable[[], Any], source: str) -> Any:
    try:
        return split()
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _labelled(train: "Texts | Images", judged: "Texts | Images") -> HeldOut:
    """Every held-out item that is not trained on asks for those of its class."""
    from retrieval.data import Texts
    from retrieval.images import Images, stand_in

    count = len(judged)
    if isinstance(judged, Texts) and isinstance(train, Texts):
        seen = {text for column in train.columns.values() for text in column}
        judged = judged.take([row for row, text in enumerate(judged.texts) if text not in seen])
    elif isinstance(judged, Images) and isinstance(train, Images):
        judged = judged.take((~stand_in(judged, train)).nonzero()[0].tolist())
    if not len(judged):
        raise UserError("every held-out item is in the training data too; give others by --held-out")
    return by_classes(judged, count - len(judged))


def _pairs(data: "Texts", held_out: "Texts | None", source: str, seed: int) -> "tuple[Texts, HeldOut]":
    """Anchors ask for their positives among all held-out positives; pairs that share a text belong together."""

    from retrieval.data import linked
    from retrieval.eval.sweep import hold_out_groups
    from retrieval.train.text import identities

    train, judged = data, held_out
    if judged is None:
        rows, others = _or_source(lambda: hold_out_groups(linked(*identities(data)), seed), source)
        train, judged = data.take(rows.tolist()), data.take(others.tolist())
    count, seen = len(judged), {text for column in train.columns.values() for text in column}
    anchors, positives = judged.columns["anchor"], judged.columns["positive"]
    judged = judged.take([row for row in range(count) if anchors[row] not in seen and positives[row] not in seen])
    if not len(judged):
        raise UserError("every held-out pair has a text that is in the training data too; give others by --held-out")
    return train, by_pairs(judged, count - len(judged))


def plan_of(train: "Texts | Images", loss: "LossConfig", flags: dict[str, Any], seed: int) -> "Plan":
    """The batches of a trial. Raises UserError where none can be made of the data."""
    from retrieval.data import Texts
    from retrieval.train.image import ImageConfig
    from retrieval.train.image import plan_batches as plan_images
    from retrieval.train.text import TextConfig, plan_batches

    lasting = {key: flags[key] for key in ("batch_size", "steps", "epochs")} | {"seed": seed}
    if isinstance(train, Texts):
        return plan_batches(train, TextConfig(head=not flags["whole"], **lasting), loss, str(flags["data"]))
    return plan_images(train, ImageConfig(**lasting), loss, str(flags["data"]))


def by_heads(
    encoder: "Encoder", train: "Texts | Images", held: HeldOut, flags: dict[str, Any], folder: Path
) -> Trainer:
    """Trials that train a linear head on embeddings, which are computed once and kept in `folder`."""
    import numpy as np
    import torch

    from retrieval.data import Texts
    from retrieval.train.head import Frozen, freeze, learning_rate, project, train_head

    def embedded(items: "Texts | Images", role: str, part: str) -> "Floats":
        return _embedded(encoder, items, folder / f"{part}-{role}", role)

    if isinstance(train, Texts):
        columns = list(train.columns.values())
        frozen = freeze(
            encoder.model, columns, lambda texts, role: embedded(Texts({"text": texts}, None, None, ""), role, "train")
        )
    else:
        frozen = Frozen(torch.from_numpy(embedded(train, "document", "train")), np.arange(len(train))[None])
    judged = torch.from_numpy(held.by_kind(lambda items, role: embedded(items, role, "held-out")))

    def run(loss: "LossConfig", seed: int) -> "tuple[Floats, Curve]":
        plan = plan_of(train, loss, flags, seed)
        torch.manual_seed(seed)
        head, curve = train_head(
            frozen, plan.batches(), loss, labels=plan.labels, steps=plan.steps, lr=flags["lr"] or learning_rate(plan)
        )
        return project(head, judged), curve

    return Trainer(run, judged.numpy)


def _embedded(encoder: "Encoder", items: "Texts | Images", folder: Path, role: str) -> "Floats":
    """A store under `folder`, or what stands there already from an interrupted sweep."""
    from retrieval.embed import embed

    folder.parent.mkdir(exist_ok=True)
    with progress("embed", len(items)) as bar:
        return embed(encoder, items, folder, role=role, overwrite=True, progress=bar).embeddings()


def by_encoders(name: str, device: str, train: "Texts | Images", held: HeldOut, flags: dict[str, Any]) -> Trainer:
    """Trials that train the whole encoder, each from its beginning."""
    from retrieval.data import Texts
    from retrieval.encoder import load_encoder
    from retrieval.train.image import ImageConfig, train_image
    from retrieval.train.text import TextConfig, train_text
    from retrieval.train.vision import SCRATCH, start

    settings = {key: flags[key] for key in ("steps", "epochs", "batch_size", "lr")}

    def fresh(seed: int) -> "Encoder":
        return load_encoder(name, device) if isinstance(train, Texts) else start(name, train, device, seed)

    def run(loss: "LossConfig", seed: int) -> "tuple[Floats, Curve]":
        encoder, source = fresh(seed), str(flags["data"])
        if isinstance(train, Texts):
            curve = train_text(encoder.model, train, TextConfig(**settings, seed=seed), loss, source=source)
        else:
            config = ImageConfig(**settings, seed=seed, scratch=name in SCRATCH)
            curve = train_image(encoder.model, train, config, loss, source=source)
        return held.encode(encoder), curve

    return Trainer(run, lambda: held.encode(fresh(flags["seed"])))


@dataclass
class Record:
    """Trials so far, in a folder: a line each, and a table of what each query scored. One that is on record is not made again."""

    folder: Path
    done: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, base: dict[str, Any], overwrite: bool) -> "Record":
        """What an interrupted sweep left in `folder`, if it was of the same data, encoder and settings (`base`)."""
        path = folder / RECORD
        made = path.read_bytes().count(b"\n") if path.exists() else 0
        settle(folder, base, "sweep", f"{made:,} trials" if made else "", overwrite)
        folder.joinpath("tables").mkdir(exist_ok=True)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]  # a kill may have cut the last
        path.write_bytes(b"".join(whole))
        trials = [json.loads(line) for line in whole]
        return cls(folder, {(trial["loss"], trial["seed"]): trial for trial in trials})

    def run(self, loss: "LossConfig", seed: int, trainer: Trainer, held: HeldOut) -> "PerQuery | None":
        """What each query scored after training with this loss and seed; None if the training failed."""
        if (loss.name, seed) not in self.done:
            self._made(loss, seed, trainer, held)
        return self.table(loss.name, seed)

    def table(self, loss: str, seed: int) -> "PerQuery | None":
        from retrieval.eval.values import read_per_query

        name = self.done[loss, seed]["table"]
        return None if name is None else read_per_query(self.folder / name)

    def _made(self, loss: "LossConfig", seed: int, trainer: Trainer, held: HeldOut) -> None:
        from retrieval.train.curve import warnings

        started = time.monotonic()
        trial: dict[str, Any] = {"loss": loss.name, "seed": seed, "table": None}
        try:
            vectors, curve = trainer.train(loss, seed)
            judged = held.measure(vectors)
        except UserError as error:  # a setting that does not train is a finding; the others go on
            trial |= {"failed": str(error)}
        else:
            name = f"tables/{len(self.done) + 1:04d}.csv"
            with (self.folder / name).open("w", encoding="utf-8", newline="") as file:
                judged.write(file)
            trial |= {"table": name, "metrics": judged.means(), "last": curve[-1], "warnings": warnings(curve)}
        trial["seconds"] = round(time.monotonic() - started, 2)
        with (self.folder / RECORD).open("ab") as file:
            file.write(json.dumps(trial, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.done[loss.name, seed] = trial
