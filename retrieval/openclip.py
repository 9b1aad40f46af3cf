"""open_clip's checkpoints, brought to transformers' CLIP, which computes the same vectors and opens anywhere.

A folder as open_clip writes it for the hub: `open_clip_config.json`, `open_clip_model.safetensors`, a tokenizer. Its two towers are
OpenAI's transformers; whatever else a configuration asks for (a tower of timm, another pooling) would be another function, and is
refused by name.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPConfig, PreTrainedModel

CONFIG, WEIGHTS, PICKLE = "open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
TOKENIZERS = ("tokenizer.json", "vocab.json")
RESAMPLING = {"bicubic": 3, "bilinear": 2}  # Pillow's numbers
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's

# What a tower may say: the value that it has where nothing is said, or the values that change no vector.
_SIZES = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}
_WORDS = {"layers": 12, "width": 512, "heads": 8, "mlp_ratio": 4.0, "context_length": 77, "vocab_size": 49408}
_HARMLESS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("ls_init_value", "timm_model_name", "hf_model_name", "norm_kwargs", "act_kwargs", "tokenizer_kwargs"), (None, {})),
    **dict.fromkeys(("final_ln_after_pool", "attentional_pool", "output_tokens", "no_ln_pre", "no_causal_mask", "embed_cls", "proj_bias", "ln_post_emb", "qk_norm", "scaled_cosine_attn"), (None, False)),
    "pool_type": ("tok", "argmax"), "pos_embed_type": ("learnable",), "proj_type": ("linear",), "input_patchnorm": (False,),
}  # fmt: skip
_UNREAD = {"patch_dropout", "hf_tokenizer_name", "pad_id", "timm_model_pretrained", "timm_pool", "timm_proj"}

_LAYER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
_ELSEWHERE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "logit_scale": "logit_scale",
}
_PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def write_as_clip(source: Path, target: Path) -> None:
    """Write the open_clip folder `source` as a transformers folder to `target`. Raises UserError for what CLIP does not compute."""
    told = _told(source)
    _refuse_incomplete(source)
    from transformers import AutoTokenizer, CLIPModel, CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config: Any = _config(source, told["model_cfg"])
    model = CLIPModel(config)
    weights = _weights(source)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted != found:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise UserError(
            f"{source / WEIGHTS}: not the weights that {CONFIG} tells of ({odd[0]}: {found.get(odd[0], 'missing')}, not "
            f"{wanted.get(odd[0], 'there')}); copy both files again"
        )
    model.load_state_dict(weights)
    write_weights(model, target)
    tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    tokenizer.model_max_length = config.text_config.max_position_embeddings
    pixels = CLIPImageProcessorPil(**_pixels(source, told.get("preprocess_cfg") or {}, config.vision_config.image_size))
    CLIPProcessor(image_processor=pixels, tokenizer=tokenizer).save_pretrained(target)  # type: ignore[no-untyped-call]


def write_weights(model: "PreTrainedModel", folder: Path | str) -> None:
    """A model's weights and configuration, as its `save_pretrained` has them, which of several processes writes in the first alone."""
    from safetensors.torch import save_model

    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    save_model(model, str(Path(folder) / "model.safetensors"), {"format": "pt"})


def _refuse_incomplete(source: Path) -> None:
    """Raise UserError for files that are not there, all of them at once."""
    pickled = (
        f" ({PICKLE} is a pickle, which is not opened; save it with safetensors)" if (source / PICKLE).is_file() else ""
    )
    lacking = [] if (source / WEIGHTS).is_file() else [f"{WEIGHTS}{pickled}"]
    if not any((source / name).is_file() for name in TOKENIZERS):
        lacking.append(
            "a tokenizer (tokenizer.json, or vocab.json and merges.txt; all of OpenAI's CLIPs have one and the same)"
        )
    if lacking:
        raise UserError(f"{source}: lacks {' and '.join(lacking)}; download the whole model")


def _told(source: Path) -> dict[str, Any]:
    try:
        told = json.loads((source / CONFIG).read_text(encoding="utf-8"))
        assert isinstance(told["model_cfg"]["embed_dim"], int)
    except (ValueError, LookupError, TypeError, AssertionError):
        raise UserError(f"{source / CONFIG}: not what open_clip writes (no model_cfg with embed_dim)") from None
    return dict(told)


def _config(source: Path, told: dict[str, Any]) -> "CLIPConfig":
    from transformers import CLIPConfig

    known = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias"}
    for key in told.keys() - known:
        raise _unlike(source, key, told[key])
    vision = _tower(source, "vision_cfg", told.get("vision_cfg") or {}, _SIZES)
    text = _tower(source, "text_cfg", told.get("text_cfg") or {}, _WORDS)
    for key in ("layers", "image_size", "patch_size"):
        if not isinstance(vision[key], int):  # a ResNet, or sides of different length
            raise _unlike(source, f"vision_cfg.{key}", vision[key])
    common = {"hidden_act": "quick_gelu" if told.get("quick_gelu") else "gelu", "projection_dim": told["embed_dim"]}

    def sizes(tower: dict[str, Any], heads: int) -> dict[str, Any]:
        width = tower["width"]
        return {**common, "hidden_size": width, "num_hidden_layers": tower["layers"], "num_attention_heads": heads, "intermediate_size": int(width * tower["mlp_ratio"])}  # fmt: skip

    return CLIPConfig(
        projection_dim=told["embed_dim"],
        vision_config={
            **sizes(vision, vision["width"] // vision["head_width"]),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        text_config={
            **sizes(text, text["heads"]),
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            # open_clip takes the vector of the greatest token, which is the last of the vocabulary.
            "eos_token_id": text["vocab_size"] - 1,
            "bos_token_id": text["vocab_size"] - 2,
        },
    )


def _tower(source: Path, name: str, told: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    for key, value in told.items():
        if key not in sizes and key not in _UNREAD and value not in _HARMLESS.get(key, ()):
            raise _unlike(source, f"{name}.{key}", value)
    return {key: told.get(key, default) for key, default in sizes.items()}


def _unlike(source: Path, key: str, value: Any) -> UserError:
    return UserError(
        f"{source / CONFIG}: {key} is {json.dumps(value)}, which transformers' CLIP does not compute; only ViT towers of "
        "OpenAI's design are read"
    )


def _pixels(source: Path, told: dict[str, Any], side: int) -> dict[str, Any]:
    """What CLIP's image processor is told, of what open_clip does to a picture that it is to encode."""
    resampling, mode = told.get("interpolation", "bicubic"), told.get("resize_mode", "shortest")
    if resampling not in RESAMPLING:
        raise _unlike(source, "preprocess_cfg.interpolation", resampling)
    if mode not in ("shortest", "squash"):
        raise _unlike(source, "preprocess_cfg.resize_mode", mode)
    square = {"height": side, "width": side}
    sizes = (
        {"size": {"shortest_edge": side}, "crop_size": square}
        if mode == "shortest"
        else {"size": square, "do_center_crop": False}
    )
    mean, std = told.get("mean", MEAN), told.get("std", STD)
    return {**sizes, "resample": RESAMPLING[resampling], "image_mean": list(mean), "image_std": list(std)}


def _weights(source: Path) -> dict[str, "Tensor"]:
    """The checkpoint's tensors, in float32, under transformers' names."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = source / WEIGHTS
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be read ({error}); copy it again") from None
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name, tensor = name.removeprefix("text."), tensor.to(torch.float32)
        # The causal mask, and what the sigmoid loss adds: neither is of a vector.
        if name in ("attn_mask", "logit_bias"):
            continue
        weights.update(_renamed(name, tensor))
    return weights


def _renamed(name: str, tensor: "Tensor") -> dict[str, "Tensor"]:
    if name in _PROJECTIONS:
        return {_PROJECTIONS[name]: tensor.T.contiguous()}
    stem, _, end = name.rpartition(".")
    if name in _ELSEWHERE or stem in _ELSEWHERE:
        return {_ELSEWHERE.get(name) or f"{_ELSEWHERE[stem]}.{end}": tensor}
    inside = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
    if inside is None:
        return {name: tensor}  # of no CLIP: told as such
    tower = "vision_model" if inside[1] else "text_model"
    layer = f"{tower}.encoder.layers.{inside[2]}"
    if inside[3].startswith("attn.in_proj_"):  # queries, keys and values in one
        end = inside[3].removeprefix("attn.in_proj_")
        return {f"{layer}.self_attn.{which}_proj.{end}": part.clone() for which, part in zip("qkv", tensor.chunk(3), strict=True)}  # fmt: skip
    part, _, end = inside[3].rpartition(".")
    return {f"{layer}.{_LAYER.get(part, part)}.{end}": tensor}
