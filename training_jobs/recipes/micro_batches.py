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
from training_jobs.memory import memory_short

log = logging.getLogger(__name__)


class MicroBatches:
    """How many images are computed at once; once it was too many, it stays at fewer.

    Attributes:
        most: images at once; None: as many as a batch has.
    """

    def __init__(self) -> None:
        self.most: int | None = None

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


def share(part: slice, images: int) -> float:
    """The part of a batch's images that a slice of it holds; 1.0 for all of them."""
    return float(part.stop - part.start) / images


def _backward(loss: Tensor) -> float:
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation here
    return float(loss.detach())
