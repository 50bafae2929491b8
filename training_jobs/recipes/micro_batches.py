"""A batch in parts where memory is short: the same step, at less memory and more time.

Beside a server on one GPU it is not known before how much memory there is. So a step is tried with all images of its
batch at once; where that raises for want of memory, its gradients are thrown away and computed again in parts of half
as many images, and so on down to one. Parts are summed before the weights move, each with its share of the batch's
loss, so the step is mathematically the same; only the order of additions is another. What was drawn for the batch is
drawn once, so nothing that comes later is another. Where memory is not short, nothing changes, to the bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from backend.failures import is_out_of_memory
from backend.logs import error_text
from training_jobs.memory import memory_short
from training_jobs.recipes.batch import Batch

log = logging.getLogger(__name__)

_WARM = 3


class MicroBatches:
    """How many images are computed at once; once it was too many, it stays at fewer.

    Attributes:
        most: images at once; None: as many as a batch has.
        records: whether a GPU's steps are recorded; once that failed they are not.
    """

    def __init__(self) -> None:
        self.most: int | None = None
        self.records = True

    def backward(self, images: int, loss_of: Callable[[slice], Tensor], forget: Callable[[], None]) -> float:
        """Compute the gradients of one batch's loss, summed over its parts.

        Args:
            images: in the batch.
            loss_of: what some of its images, given as a slice, add to the loss; called again for the same images
                where memory was short, so it must draw nothing at random.
            forget: clears all gradients.

        Returns:
            The loss of the batch.

        Raises:
            MemoryShortError: memory is short even for one image at a time.
        """
        while True:
            size = min(images, self.most or images)
            forget()
            try:
                return sum(_backward(loss_of(slice(at, min(at + size, images)))) for at in range(0, images, size))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise memory_short(error) from error
            # Only here, where the error and with it the tensors of its frames are gone.
            torch.cuda.empty_cache()
            self.most = size // 2
            log.warning(
                "memory is short for %d images at once: from here on %d, which takes longer and learns the same",
                size,
                self.most,
            )


class Backward:
    """Gradients of one batch after the other, all of one fit.

    On a GPU the steps of a fit are a few hundred small kernels each, the same ones every time, and starting them takes
    longer than running them. So they are recorded once and replayed for each batch (CUDA graphs:
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs), unless that cannot be done.
    """

    def __init__(
        self, loss_of: Callable[[Batch, slice], Tensor], forget: Callable[[], None], parts: MicroBatches
    ) -> None:
        """Nothing is computed yet.

        Args:
            loss_of: what some images of a batch, given as a slice, add to its loss. It must draw nothing at random, and
                ask nothing of the device that decides what is computed.
            forget: clears all gradients, so that they have no room.
            parts: how batches are computed where memory is short.
        """
        self._loss_of, self._forget, self._parts = loss_of, forget, parts
        self._recorded: _Recorded | None = None

    def __call__(self, batch: Batch) -> Tensor | float:
        """Compute the gradients of one batch's loss, of which all of a fit have one shape.

        Returns:
            The loss; as long as a GPU computes it, nothing waits but who reads it. Read it before the next call.

        Raises:
            MemoryShortError: memory is short even for one image at a time.
        """
        if batch.target.is_cuda and self._parts.records and self._parts.most is None:
            try:
                with torch.cuda.device(batch.target.device):  # what records and replays means the current one
                    self._recorded = self._recorded or _Recorded(batch, self._loss_of, self._forget)
                    return self._recorded(batch)
            except RuntimeError as error:  # all of torch's; a job that is out of time ends with another
                # Graphs need memory that torch does not count, and run out of it in several ways. What is really wrong
                # with a step is said again by the same step as it is.
                log.warning("steps are not recorded, which takes longer and learns the same: %s", error_text(error))
            self._parts.records = False
        self._recorded = None
        return self._parts.backward(len(batch), lambda part: self._loss_of(batch, part), self._forget)


class _Recorded:
    """Forward and backward pass of a whole batch as one graph, with a batch of its own that others are copied into."""

    def __init__(self, batch: Batch, loss_of: Callable[[Batch, slice], Tensor], forget: Callable[[], None]) -> None:
        self._batch, whole = batch.clone(), slice(0, len(batch))
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no annotation here
        now = torch.cuda.current_stream()
        side.wait_stream(now)
        with torch.cuda.stream(side):  # what libraries set up on first use must not be recorded
            for _ in range(_WARM):
                forget()
                _backward(loss_of(self._batch, whole))
        now.wait_stream(side)
        forget()
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: fits on other GPUs, in other threads, may do meanwhile what a capture may not.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._loss = loss_of(self._batch, whole)
            self._loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation here

    def __call__(self, batch: Batch) -> Tensor:
        for own, other in zip(self._batch.tensors(), batch.tensors(), strict=True):
            own.copy_(other)
        self._graph.replay()  # gradients are written anew, not added to
        return self._loss.detach()


def share(part: slice, images: int) -> float:
    """The part of a batch's images that a slice of it holds; 1.0 for all of them."""
    return float(part.stop - part.start) / images


def _backward(loss: Tensor) -> float:
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation here
    return float(loss.detach())
