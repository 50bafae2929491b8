"""One training on several processes, each with a part of every batch: `torchrun` starts them, torch.distributed joins.

Every process holds all weights. Embeddings are gathered, so that each item meets the negatives of the whole batch;
gradients are averaged after the backward pass; so all processes take the same step. Without `torchrun` everything here
does nothing: a process alone is rank 0 of 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vlm_core.checkpoint import resolve_device
from vlm_core.errors import VLMError

_T = TypeVar("_T")

_PATIENCE = timedelta(hours=1)
"""The others wait while rank 0 measures."""
_BUCKET = 1 << 23
"""Gradients that are sent together, numbers; 32 MiB."""


class DivergedError(VLMError):
    """Processes that should hold the same weights do not."""


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of one training, seen from one of them.

    Attributes:
        rank: of this one, 0 to size - 1. Rank 0 alone measures and writes.
        size: how many there are.
        device: what this one computes on.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def joined(cls, device: str) -> Processes:
        """Those that `joined` has joined, or this process alone.

        Args:
            device: a setting as `resolve_device` takes it; each of several processes on a machine has a GPU of its own.

        Raises:
            InputError: it is unknown or not on this machine.
        """
        found = resolve_device(device)
        if not dist.is_initialized():
            return cls(0, 1, found)
        if found.type == "cuda":
            found = torch.device("cuda", torch.cuda.current_device())
        return cls(dist.get_rank(), dist.get_world_size(), found)

    @property
    def main(self) -> bool:
        """Whether this is the one that measures and writes."""
        return self.rank == 0

    def part(self, items: Sequence[_T]) -> list[_T]:
        """This process's equal part of what all of them work on, in order of ranks."""
        each = len(items) // self.size
        return list(items[self.rank * each : (self.rank + 1) * each])

    def gather(self, rows: Tensor) -> Tensor:
        """(b, E) of each process -> (size * b, E) on all, in order of ranks; gradients go back to where rows are from.

        A row's gradient is the sum of what all processes' losses make of it.
        """
        if self.size == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows, self)
        return gathered

    def every(self, values: Tensor) -> list[Tensor]:
        """The same-shaped values of each process, in order of ranks, where `values` is; without gradients."""
        if self.size == 1:
            return [values]
        here = values.detach().to(self.device).contiguous()
        found = [torch.empty_like(here) for _ in range(self.size)]
        dist.all_gather(found, here)
        return [other.to(values.device) for other in found]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes, which must have gradients of the same parameters."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                continue
            bucket.append(parameter.grad)
            if sum(grad.numel() for grad in bucket) >= _BUCKET:
                self._average(bucket)
                bucket = []
        if bucket:
            self._average(bucket)

    def _average(self, grads: Sequence[Tensor]) -> None:
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= self.size
        for grad, mean in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))

    def mean(self, value: float) -> float:
        """The mean of each process's value."""
        if self.size == 1:
            return value
        return float(torch.stack(self.every(torch.tensor(value, dtype=torch.float64))).mean())

    def any(self, flag: bool) -> bool:
        """Whether it is so on any process. All wait for each other here."""
        return self.mean(float(flag)) > 0

    def copy_weights(self, module: nn.Module) -> None:
        """Give all processes rank 0's weights and buffers."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    def check_equal(self, module: nn.Module) -> None:
        """Compare a digest of the weights.

        Raises:
            DivergedError: they are not the same everywhere.
        """
        if self.size == 1:
            return
        # Two sums of each tensor, so that a change of signs shows as well as one of sizes.
        digest = torch.stack([_sums(tensor.detach().double()) for tensor in module.state_dict().values()])
        first = self.every(digest)[0]
        if self.any(not torch.equal(digest, first)):
            raise DivergedError(
                "the processes' weights have become different, so that the training cannot go on: resume it from the "
                "last state, on machines with the same devices and versions"
            )


def _sums(values: Tensor) -> Tensor:
    return torch.stack([values.sum(), values.square().sum()])


class _Gather(torch.autograd.Function):
    """All-gather with gradients. torch.distributed.nn's is deprecated, and its successor is private."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return torch.cat(processes.every(rows))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        processes: Processes = ctx.processes
        return total.chunk(processes.size)[processes.rank].clone(), None


@contextlib.contextmanager
def joined(device: str) -> Iterator[bool]:
    """Join the processes that `torchrun` started, by gloo on CPUs and nccl on GPUs, and part from them at the end.

    Who has joined already stays so: processes cannot safely part and join again under one `torchrun`.

    Args:
        device: "auto", "cpu" or "cuda"; on a machine with several processes each takes the GPU of its local rank.

    Yields:
        Whether this process is the one that speaks for all: rank 0, or one that was started alone.

    Raises:
        InputError: the device is unknown or not on this machine.
    """
    if dist.is_initialized() or not dist.is_torchelastic_launched():
        yield Processes.joined(device).main
        return
    kind = resolve_device(device).type
    if kind == "cuda":
        torch.cuda.set_device(resolve_device(f"cuda:{dist.get_node_local_rank()}"))
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()
