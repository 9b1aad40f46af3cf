"""Training an encoder itself, by sentence-transformers' trainer: several processes, half precision, checkpoints that a killed run goes on from."""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from safetensors.torch import load_file, load_model, save_file, save_model
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from torch import Tensor, distributed
from transformers.trainer_callback import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from retrieval.artifact import write_atomically
from retrieval.tokens import Features

from .average import Average
from .collate import Collator, Shares, loader
from .curve import Curve
from .loss import OWN_RATE
from .loss.gather import world
from .sentence_loss import SentenceLoss
from .settings import Settings

CHECKPOINT_SECONDS = 120.0
ASK_STEPS = 10  # how often several processes agree on whether it is time
WEIGHTS, LOSS, CURVE = "model.safetensors", "loss.safetensors", "curve.json"
Judge = Callable[[SentenceTransformer, int], dict[str, float]]


@dataclass(frozen=True)
class Watch:
    """Judging during training (judge: the encoder and the step → metrics): every so many steps, by which metric; the best checkpoint is what is kept in the end, and training
    stops when so many judgements in a row brought nothing better (`patience`, None: never)."""

    judge: Judge
    every: int
    metric: str
    patience: int | None = None
    tell: Callable[[str], None] = lambda line: None


def train_whole(
    model: SentenceTransformer,
    collator: Collator,
    loss: SentenceLoss,
    settings: Settings,
    steps: int,
    scratch: Path,
    *,
    watch: Watch | None = None,
    report_to: str = "none",
) -> Curve:
    """Train `model` in place for so many steps, in every process of torch.distributed together, and return the curve.

    scratch: a folder for checkpoints. Where it holds one of a killed call with the same arguments, training goes on from there,
    bit for bit as if it had never stopped (on one device).
    """
    found, last = last_checkpoint(scratch), steps
    patience = EarlyStoppingCallback(watch.patience) if watch and watch.patience else None
    if found and watch and patience:
        at, patience.early_stopping_patience_counter = _judged_in_vain(Path(found), watch.metric)
        if patience.early_stopping_patience_counter >= patience.early_stopping_patience:
            last = at  # killed between its end and the writing of the run
    own_rate = {r"^loss\.": OWN_RATE} if list(loss.loss.parameters()) else {}
    arguments = _arguments(
        settings,
        steps,
        watch,
        output_dir=str(scratch),
        max_steps=last,
        per_device_train_batch_size=collator.sources[0].plan.pairs,
        learning_rate_mapping=settings.rates(model) | own_rate,
        report_to=report_to,
        use_cpu=model.device.type == "cpu",
    )
    model.model_card_data.widget = [{"text": ""}]  # else the trainer looks for examples, with a bar; our card has none
    average = None if settings.average is None else Average(model, settings.average)
    config: Any = getattr(model, "config", None)
    silent = config is not None and not hasattr(config, "use_cache")
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"row": [0, 1]}),  # `loader` reads the data
        eval_dataset=None if watch is None else Dataset.from_dict({"row": [0]}),
        loss=loss,
        callbacks=[each for each in (patience, average, Timed()) if each is not None],
    )
    if silent:
        del config.use_cache  # the trainer sets it in every encoder, which then is not the one that is loaded again
    trainer.batches = lambda: loader(
        collator, Shares(collator.sources, last * settings.accumulate, settings.seed, *world(), collator.pictures)
    )
    trainer.on_device = collator.on_device
    trainer.watch, trainer.average = watch, average
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    trainer.train(resume_from_checkpoint=found)
    if average and watch is None:  # of judged checkpoints the best has its own
        average.keep()
    model.eval()
    if watch is not None:
        done, best = trainer.state.global_step, trainer.state.best_global_step
        stopped = f"stopped after {done} of {steps} steps, " if done < steps else ""
        watch.tell(f"{stopped}kept the weights of step {best}, {watch.metric} {trainer.state.best_metric:.4f}")
    return loss.curve


def _arguments(
    settings: Settings, steps: int, watch: Watch | None, **known: Any
) -> SentenceTransformerTrainingArguments:
    """The settings as the trainer has them. known: those of its arguments that they do not say."""
    judged: dict[str, Any] = {}
    if watch is not None:
        judged = {"eval_strategy": "steps", "eval_steps": watch.every, "metric_for_best_model": watch.metric}
        judged |= {"greater_is_better": True, "load_best_model_at_end": True}
    return SentenceTransformerTrainingArguments(
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.rate,
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        warmup_steps=round(settings.warmup * steps),
        bf16=settings.compute == "bfloat16",
        fp16=settings.compute == "float16",
        torch_compile=settings.compiled,
        seed=settings.seed,
        save_strategy="steps",
        save_steps=watch.every if watch else 10**9,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,  # would wait for the GPU; `record` looks at every loss
        disable_tqdm=True,
        # Asked for where encoders are joined; our batches say themselves what they are of.
        router_mapping={"row": "text"},
        **judged,
        **known,
    )


def _judged_in_vain(checkpoint: Path, metric: str) -> tuple[int, int]:
    """Its step, and how many judgements since the best there have been, which `EarlyStoppingCallback` forgets."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    values = [logged[f"eval_{metric}"] for logged in state.log_history if f"eval_{metric}" in logged]
    return state.global_step, len(values) - 1 - values.index(max(values)) if values else 0


class Trainer(SentenceTransformerTrainer):
    """What sentence-transformers' trainer lacks: our batches, judging by any function, and checkpoints of model and loss that are whole
    or not there. Logs a `SentenceLoss`'s diagnostics beside the loss, to the trainer's history and whatever it reports to."""

    loss: SentenceLoss  # type: ignore[assignment]
    batches: Callable[[], Any]
    on_device: Callable[[Features], Features]
    watch: Watch | None
    average: Average | None

    def get_train_dataloader(self) -> Any:
        return self.batches()

    def collect_features(self, inputs: dict[str, Any]) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:  # type: ignore[override]
        return [self.on_device(chunk) for chunk in inputs["chunks"]], inputs["batch"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        curve = self.loss.curve
        super().log({**curve[-1], **logs} if "loss" in logs and curve else logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        assert self.watch is not None
        with self.average.in_place() if self.average else nullcontext():
            judged = self.watch.judge(self.model, self.state.global_step)
        found = {f"eval_{name}": value for name, value in judged.items()}
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(folder / WEIGHTS))
        save_file(self.loss.state(), folder / LOSS)
        if self.average:
            self.average.save(folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:  # the file that makes it a checkpoint
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            write_atomically(folder / CURVE, json.dumps(self.loss.curve).encode())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_model(self.model, str(folder / WEIGHTS), device=str(self.model.device))
        self.loss.restore(load_file(folder / LOSS, device=str(self.model.device)))
        if self.average:
            self.average.load(folder)
        self.loss.curve[:] = json.loads((folder / CURVE).read_text("utf-8"))

    def _load_best_model(self) -> None:
        """The weights of the best checkpoint; the curve stays that of all steps."""
        folder = Path(str(self.state.best_model_checkpoint))
        load_model(self.model, str(folder / WEIGHTS), device=str(self.model.device))
        if self.average:
            self.average.load(folder)
            self.average.keep()


class Timed(TrainerCallback):
    """Asks for a checkpoint when the last is some minutes old, by the first process's clock; and for a judgement of the last step."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == state.max_steps:
            control.should_evaluate = args.eval_strategy != "no"  # the last weights may be the best
        elif self._is_time(state.global_step):
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.last = time.monotonic()

    def _is_time(self, step: int) -> bool:
        due = time.monotonic() - self.last > CHECKPOINT_SECONDS
        if world()[1] == 1:
            return due
        if step % ASK_STEPS:
            return False
        asked = [due]
        distributed.broadcast_object_list(asked)
        return asked[0]


def last_checkpoint(scratch: Path) -> str | None:
    """The newest whole checkpoint; removes those that a killed call left unfinished."""
    found: list[tuple[int, Path]] = []
    for folder in scratch.glob("checkpoint-*"):
        if (folder / CURVE).is_file():
            found.append((int(folder.name.rsplit("-", 1)[1]), folder))
        elif world()[0] == 0:
            shutil.rmtree(folder)
    return str(max(found)[1]) if found else None
