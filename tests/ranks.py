"""One process of several, over gloo: begun by test_gather.py with rank, processes, whether shares are uneven, and a folder."""

import warnings

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from retrieval.train.loss import METHODS, ContrastiveLoss, named

CASES = [
    *METHODS,
    "hcl(kappa=4, temperature=0.5, tau_plus=0.05)",
    "hcl(beta=1, detach=True)",
    "hcl(ess=8)",
    "infonce(memory=10)",
    "h-scl(memory=10)",
    "clip(learn_temperature=True)",
    "hcl(entry='joint')",
    "clip(own_negatives=True)",
    "hcl(own_negatives=True, memory=10)",
]
PAIRS, IN, OUT, STEPS = 12, 6, 5, 3
WITH_NEGATIVES = {"hcl(beta=1, detach=True)", "embedding-gemma", "simcse", "gist", "hcl(ess=8)"}
WITH_NEGATIVES |= {name for name in CASES if "own_negatives" in name}


def inputs(name):
    """Of every step: pairs (2, PAIRS, IN), explicit negatives, labels, identities and guide; the same in every process."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        rows = torch.randn(3, PAIRS, IN, generator=generator, dtype=torch.float64)
        yield (
            rows,
            torch.randint(0, 4, (PAIRS,), generator=generator) if named(name).needs_labels else None,
            torch.randint(0, 40, (2, PAIRS), generator=generator),
        )


def model():
    torch.manual_seed(0)
    return nn.Linear(IN, OUT, bias=False, dtype=torch.float64)


def share(rank, processes, uneven=False):
    """The pairs of one process; uneven ones differ in number."""
    cuts = [round(PAIRS * r / processes) for r in range(processes + 1)]
    cuts[1] -= uneven
    return slice(cuts[rank], cuts[rank + 1])


def train(name, pairs, wrap=lambda net: net):
    """Three steps of gradient descent on these pairs; returns every gradient, and the parameters at the end."""
    net, loss_of = model(), ContrastiveLoss(named(name)).double()
    wrapped, gradients = wrap(net), []
    torch.manual_seed(7)  # synthetic negatives are drawn
    for rows, labels, items in inputs(name):
        rows, items = rows[:, pairs], items[:, pairs]
        embeddings = wrapped(rows)
        with_guide = named(name).false_negatives is not None and named(name).false_negatives.guide
        with_negatives = name in WITH_NEGATIVES
        loss = loss_of(
            embeddings[0],
            embeddings[1],
            embeddings[2] if with_negatives else None,
            labels=None if labels is None else labels[pairs],
            items=items.flatten(),
            guide=rows[:2, :, :4] if with_guide else None,
            guide_negative=rows[2, :, :4] if with_guide and with_negatives else None,
        )
        parameters = [*net.parameters(), *loss_of.parameters()]
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        with torch.no_grad():
            for parameter in parameters:
                gradients.append(parameter.grad.clone())
                parameter -= 0.1 * parameter.grad
    return [*gradients, *(parameter.detach() for parameter in parameters)]


def process(rank, processes, uneven, folder):
    """One process of several: what it finds is kept in `folder`."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=processes)
    pairs = share(rank, processes, uneven)
    torch.save({name: train(name, pairs, DistributedDataParallel) for name in CASES}, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()
