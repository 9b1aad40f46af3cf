"""A running mean of an encoder's weights, which is judged and kept in their place (Polyak and Juditsky 1992)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState

FILE = "average.safetensors"


class Average(TrainerCallback):
    """After step n the mean becomes d · mean + (1 − d) · weights, d = min(decay, (1 + n) / (10 + n)): the first steps count less and
    less, as in TensorFlow's. Batch statistics are averaged too; counts are those of the last step."""

    def __init__(self, model: SentenceTransformer, decay: float) -> None:
        self.model, self.decay = model, decay
        self.mean = {name: value.clone() for name, value in model.state_dict().items()}

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **_: object) -> None:
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self.mean[name].lerp_(value, 1 - decay) if value.is_floating_point() else self.mean[name].copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The encoder has the mean for its weights."""
        kept = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.mean)
        try:
            yield
        finally:
            self.model.load_state_dict(kept)

    def keep(self) -> None:
        """Make the mean the encoder's weights for good."""
        self.model.load_state_dict(self.mean)

    def save(self, folder: Path) -> None:
        save_file({name: value.contiguous() for name, value in self.mean.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        found: dict[str, Tensor] = load_file(folder / FILE, device=str(self.model.device))
        for name, value in found.items():
            self.mean[name].copy_(value)
