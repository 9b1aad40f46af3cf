"""An encoder run by OpenVINO: on a CPU about twice as fast as torch at the same values, more in bfloat16."""

import warnings
from collections.abc import Callable

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from retrieval.errors import UserError, first_line
from retrieval.tokens import Features

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def compile_encoder(
    model: SentenceTransformer, example: Features, compute: str, threads: int
) -> Callable[[Features], Tensor]:
    """What maps features to sentence embeddings as the model does, transformer, pooling and all.

    example: features that say which inputs there are; their sizes may differ later. Raises UserError where OpenVINO is not
    installed or cannot take the model.
    """
    try:
        import openvino
    except ImportError:
        raise UserError("--backend openvino: is not installed; pip install 'retrieval-toolkit[openvino]'") from None
    if compute not in PRECISIONS:
        raise UserError(f"--compute {compute}: OpenVINO runs {' or '.join(PRECISIONS)} on a CPU; choose one")
    core = openvino.Core()
    if compute == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UserError(
            "--compute bfloat16: this processor has no bfloat16, so OpenVINO would run float32; leave it out"
        )
    names = [name for name, value in example.items() if isinstance(value, Tensor)]
    rest = {name: value for name, value in example.items() if name not in names}
    whole = _Whole(model, names, rest)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of tracing, which is what the conversion does
            graph = openvino.convert_model(whole, example_input=tuple(example[name] for name in names))
        settings = {"INFERENCE_PRECISION_HINT": PRECISIONS[compute], "INFERENCE_NUM_THREADS": threads}
        compiled = core.compile_model(graph, "CPU", settings)
    except Exception as error:  # whatever tracing, conversion or compilation meet in a model they do not know
        raise UserError(
            f"--backend openvino: cannot take this encoder ({first_line(error)}); use --backend torch"
        ) from error

    def run(features: Features) -> Tensor:
        found = compiled([features[name].numpy() for name in names])
        return torch.from_numpy(found[0].copy())

    return run


class _Whole(nn.Module):
    """A sentence-transformers model as a function of tensors."""

    def __init__(self, model: SentenceTransformer, names: list[str], rest: Features) -> None:
        super().__init__()
        self.model, self.names, self.rest = model, names, rest

    def forward(self, *inputs: Tensor) -> Tensor:
        features = {**self.rest, **dict(zip(self.names, inputs, strict=True))}
        return self.model(features)["sentence_embedding"]  # type: ignore[no-any-return]
