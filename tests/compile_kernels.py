"""Compiles each kernel for an H100 as `tiles.py` would launch it; prints its machine code's size. Run by test_tiles.py."""

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from retrieval.train.loss import kernels, named
from retrieval.train.loss.blocks import Setting
from retrieval.train.loss.tasks import Known, tasks
from retrieval.train.loss.tiles import ACROSS, ALONG, WRITTEN, Tiles

TYPES = {
    "*bf16": ("out",),
    "*i32": ("own", "partners"),
    "*i64": ("label_a", "label_c", "item_a", "item_c"),
    "i32": ("first_a", "last_a", "first_c", "last_c", "step_a", "step_c"),
    "fp32": ("sharpness", "beta"),
}


def main():
    rows = torch.randn(2, 8, 768)
    config = named("h-scl")
    known = Known(rows, torch.arange(8), torch.arange(16).view(2, 8), None, raw=rows.bfloat16())
    tiles = Tiles(tasks(known, known, 0, None, config)[0], Setting(config, 0.1, 0.0, 0.2))
    which = {"HARD": True, "THROUGH": True, "SYMMETRIC": True, "ENTRY": "coupled"}
    for kernel, sides in (
        (kernels.sums_kernel, ALONG),
        (kernels.sums_kernel, ACROSS),
        (kernels.positives_kernel, ALONG),
        (kernels.gradient_kernel, WRITTEN),
    ):
        flags = tiles.flags() | which | sides
        types = {name: kind for kind, names in TYPES.items() for name in names}
        if kernel is kernels.sums_kernel:
            types["out_count"] = "*i32"
        constants = {name: value for name, value in flags.items() if name in kernel.arg_names}
        signature = {n: "constexpr" if n in constants else types.get(n, "*fp32") for n in kernel.arg_names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if signature[n][0] == "*"}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
        made = triton.compile(
            source,
            target=GPUTarget("cuda", 90, 32),
            options={name: flags[name] for name in ("num_warps", "enable_fp_fusion")},
        )
        print(len(made.asm["cubin"]))


if __name__ == "__main__":
    main()
