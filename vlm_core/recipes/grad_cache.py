"""Gradients of a loss over a whole batch, with the memory of a part of it.

A contrastive loss compares every item of a batch with every other, so ordinary gradient accumulation, which adds up
losses of parts, would take the negatives of a part only. Here all parts are embedded without a graph, the loss is
taken over all embeddings, and its gradients with respect to them are kept; then each part is embedded once more, with
a graph, and its gradients are carried on into the weights.

Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, arXiv:2101.06983.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Embeds = tuple[Tensor, Tensor]
"""Image and text embeddings, each (B, E)."""


def cached_backward(
    parts: Sequence[Callable[[], Embeds]], loss_of: Callable[[Tensor, Tensor], Tensor], device: torch.device
) -> Tensor:
    """Add to every weight's gradient what one backward pass through all parts at once would.

    Args:
        parts: each gives the embeddings of its part of the batch; called twice, with the same random numbers, so that
            the same units drop out. It opens its own autocast: the casts of weights that autocast keeps from the pass
            without a graph would have none in the other.
        loss_of: the loss of the embeddings of all parts, in their order. It may have weights of its own.
        device: what the parts are computed on; a GPU has random numbers of its own.

    Returns:
        The loss, a scalar without a graph.
    """
    states = []
    found: list[Embeds] = []
    with torch.no_grad():
        for part in parts:
            states.append(random_state(device))
            found.append(part())
    image, text = (torch.cat(side).requires_grad_() for side in zip(*found, strict=True))
    loss = loss_of(image, text)
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation here
    assert image.grad is not None
    assert text.grad is not None
    image_grads = torch.split(image.grad, [len(own) for own, _ in found])
    text_grads = torch.split(text.grad, [len(own) for _, own in found])
    for part, state, image_grad, text_grad in zip(parts, states, image_grads, text_grads, strict=True):
        set_random_state(state, device)
        torch.autograd.backward(part(), (image_grad, text_grad))
    return loss.detach()


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's random numbers, of the CPU and of `device`: kind -> uint8, on the CPU."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Go on with the random numbers from there; what `state` lacks stays as it is."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
