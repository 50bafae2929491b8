"""Where `label-studio-ml init my_backend --script .../backend/model.py` looks for the class."""

from __future__ import annotations

from typing import Any


def __dir__() -> list[str]:
    return ["VLMBackend"]


def __getattr__(name: str) -> Any:
    """label-studio-ml is imported when the class is asked for; see `backend.plugin`."""
    if name == "VLMBackend":
        from backend.plugin import VLMBackend

        return VLMBackend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
