"""Several processes that train together, as torchrun starts them: the first speaks and writes, the others only compute."""

import gc
import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from retrieval.errors import UserError
from retrieval.wording import plural

from .output import silence

T = TypeVar("T")
PATIENCE = timedelta(hours=12)  # while the first judges an encoder, the others wait


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def join(device: str) -> str:
    """Join the others, and the device that is this process's own: of several GPUs the one with its number."""
    if count() == 1:
        return device
    import torch
    import torch.distributed.nn  # after the group it would keep that for good, as its functions' default
    from torch import distributed

    local = int(os.environ.get("LOCAL_RANK", "0"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
    silence(not is_first())
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)  # accelerate, to torch
    if device == "cuda":
        if here > (gpus := torch.cuda.device_count()):  # all refuse, so that the first does, which speaks
            raise UserError(f"torchrun: {here} processes and {plural(gpus, 'GPU')}; start one a GPU")
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    return device


def of_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them."""
    if count() == 1:
        return make()
    from torch import distributed

    made: list[Any] = [make() if is_first() else None]
    distributed.broadcast_object_list(made)
    return made[0]  # type: ignore[no-any-return]


def leave() -> None:
    """Wait for the others, and part: with its threads, one of which could ask for Python after its end and abort the process."""
    if count() > 1:
        from torch import distributed

        distributed.barrier()
        distributed.destroy_process_group()
        gc.collect()  # the trainer that still holds the group
