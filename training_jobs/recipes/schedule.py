"""How fast a fit learns over its steps."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def rise_and_fall(optimiser: Optimizer, steps: int, warmup_share: float) -> LambdaLR:
    """The learning rate grows in a line to the optimiser's own over a share of the steps, then falls in a line to 0."""
    warmup = max(1, round(warmup_share * steps))
    return LambdaLR(optimiser, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup)))
