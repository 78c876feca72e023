"""What several processes need beyond Lightning: who am I, and a gather that gradients flow through.

Legend: `B` rows of the global batch, `w` processes; process r holds rows r::w, so shares differ by
    one row at most.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gera_lightning.utils.errors import UserError, check_one_of

log = logging.getLogger(__name__)
T = TypeVar("T")

LONGEST_WAIT = timedelta(days=7)
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu", "xla", "hpu")
"""Lightning's words; closed forms are computed on the CPU beside all but CUDA's."""


def launched() -> bool:
    """Whether torchrun (or a scheduler in its manner) started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def num_processes(devices: int) -> int:
    """Processes to start for so many devices (-1: every GPU); 1 in a process that was launched for
    one of them.
    """
    if devices == 1 or "LOCAL_RANK" in os.environ:
        return 1
    return max(1, devices if devices > 0 else torch.cuda.device_count())


def world() -> tuple[int, int]:
    """This process's number and the number of processes: `(rank, world_size)`."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def cores() -> int:
    """Processor cores that this process may use: a job's share of its machine, not the whole, where
    the system tells.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """GPUs that this process may use, each as `CUDA_VISIBLE_DEVICES` names it."""
    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return (
        [name.strip() for name in named.split(",")][:count]
        if named
        else [str(number) for number in range(count)]
    )


def device(accelerator: str) -> torch.device:
    """What a process computes on outside of Lightning, where `trainer.accelerator` says
    `accelerator`: this process's CUDA device, or the CPU.

    Raises:
        UserError: an unknown word, or a GPU that is not there.
    """
    check_one_of("trainer.accelerator", accelerator, ACCELERATORS)
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if accelerator == "cuda" or (accelerator == "gpu" and not torch.backends.mps.is_available()):
        raise UserError(
            f"trainer.accelerator={accelerator}: there is no GPU here that torch"
            f" {torch.__version__} can use: take auto or cpu"
        )
    return torch.device("cpu")


def run_with_cpu_fallback(device: torch.device, work: Callable[[torch.device], T], what: str) -> T:
    """What `work` gives on a device; on the CPU where the device's memory is too small for it.

    Args:
        device: where to try first.
        work: called with the device to compute on, a second time with the CPU where the first had
            too little memory.
        what: the work in words, for the warning.
    """
    if device.type != "cpu":
        try:
            return work(device)
        except RuntimeError as error:
            # OutOfMemoryError is one; where other processes fill the device CUDA and cuBLAS have
            # words of their own
            if "out of memory" not in str(error) and "ALLOC_FAILED" not in str(error):
                raise
            log.warning("the memory of %s is too small for %s: computing on the CPU", device, what)
    return work(torch.device("cpu"))


def initialize() -> None:
    """Join the process group when torchrun started us; nothing otherwise.

    The others wait for the first process while it builds graphs, tunes and evaluates: no limit of
        minutes ends that.
    """
    if launched() and not dist.is_initialized():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local < torch.cuda.device_count():  # on the CPU there may be more processes than GPUs
            torch.cuda.set_device(local)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT
        )


def broadcast_object(value: Any) -> Any:
    """The first process's value, on every process."""
    if world()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Wait for all processes."""
    if world()[1] > 1:
        dist.barrier()


class _Gather(torch.autograd.Function):
    """Rows of all processes in global order; backward returns w x the own rows' gradient.

    Every process computes the same loss of all rows, and DDP averages parameter gradients over
    processes: the factor w makes that average the gradient of one process on the joined batch.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: int) -> Tensor:
        rank, size = world()
        longest = -(-count // size)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(size)]
        dist.all_gather(parts, padded)
        out = rows.new_empty(count, *rows.shape[1:])
        for r, part in enumerate(parts):
            out[r::size] = part[: len(range(r, count, size))]
        ctx.share = (rank, size)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        rank, size = ctx.share
        return grads[0][rank::size] * size, None


def gather_rows(rows: Tensor, count: int) -> Tensor:
    """All `count` rows of the global batch from each process's share `rows` (rows r::w), in global
    order, differentiable.
    """
    return rows if world()[1] == 1 else _Gather.apply(rows, count)


def global_mean(values: Tensor, count: int) -> Tensor:
    """The mean over the global batch's `count` values from each process's share, in value and,
    under DDP, in gradient.

    On one process it is `values.mean()`.
    """
    size = world()[1]
    if size == 1:
        return values.sum() / count
    local = values.sum() * (size / count)
    total = values.detach().sum()
    dist.all_reduce(total)
    return local + (total / count - local).detach()
