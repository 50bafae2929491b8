"""Modules without random weights: drawing them takes most of a checkpoint's loading, which overwrites all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, no_grad
from torch.overrides import TorchFunctionMode

_DRAWING = frozenset({"uniform_", "normal_", "erfinv_", "kaiming_uniform_", "kaiming_normal_"})
"""Functions of `torch.nn.init`, and the tensor's methods of which the others there consist. By name: transformers
puts its own in place of them while it builds a model."""


class Unfilled(TorchFunctionMode):
    """A context in which weights are filled with zeros where `torch.nn.init` would draw them.

    Zeros and not what memory holds: some initialisers draw again until what they draw is within bounds.

    Only for modules all of whose parameters are read from files afterwards (`vlm_core.files.fill` sees to that).
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run everything but what draws."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", None) in _DRAWING:
            tensor: Tensor = args[0] if args else kwargs["tensor"]
            with no_grad():
                return tensor.zero_()
        return func(*args, **kwargs)
