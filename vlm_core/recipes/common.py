"""What both recipes share: the schedule, deterministic set-up, resumable state, metrics on disk."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vlm_core.errors import InputError

_M = TypeVar("_M", bound=nn.Module)

STATE = "training.safetensors"
STATE_INFO = "training.json"
METRICS = "metrics.jsonl"
CHART = "metrics.png"
CHECKPOINT = "checkpoint"


class SettingsError(InputError):
    """Settings that cannot work together; the message lists every problem there is."""


def raise_all(problems: Sequence[str]) -> None:
    """Raise one SettingsError that lists all problems, if there are any."""
    if problems:
        raise SettingsError("the training settings cannot be used:\n" + "\n".join(f"- {p}" for p in problems))


def learning_rate(step: int, steps: int, peak: float, *, warmup: float = 0.1, final: float = 0.01) -> float:
    """One cycle: a linear rise over the first `warmup` part, then half a cosine down to `final` times the peak.

    Args:
        step: 0 for the first update.
        steps: updates in all.
        peak: highest rate.
        warmup: part of the steps, 0 to 1; with 0 the first update has the highest rate.
        final: last rate in parts of the peak.
    """
    rise = max(1.0, warmup * steps) if warmup else 0.0
    if step < rise:
        return peak * (step + 1) / (rise + 1)
    done = min(1.0, (step - rise) / max(1.0, steps - rise))
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))


def parameter_groups(modules: Sequence[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay; biases, norms, scales and embeddings do not.

    An embedding that is rarely used would only ever be shrunk.
    """
    embeddings = {
        id(p)
        for module in modules
        for part in module.modules()
        if isinstance(part, nn.Embedding)
        for p in part.parameters(recurse=False)
    }
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            positional = "pos_embed" in name or "token" in name.rsplit(".", 1)[-1]
            whole = parameter.ndim < 2 or id(parameter) in embeddings or positional
            (kept if whole else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, and ask torch for deterministic kernels where it has them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)


@contextlib.contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """The context of a forward pass: bfloat16 autocast for "bf16", and on a CPU attention written out.

    The fused CPU kernel's backward pass is slow: a step of the demo's training took 1.25 s with it, 0.87 s
    written out, 1.6 s with torch's own unfused kernel (two busy cores, bfloat16).
    """
    with contextlib.ExitStack() as stack:
        if precision == "bf16":
            stack.enter_context(torch.autocast(device.type, torch.bfloat16))
        if device.type == "cpu":
            stack.enter_context(_PlainAttention())
        yield


class _PlainAttention(TorchFunctionMode):
    """Computes `scaled_dot_product_attention` as two matrix products and a softmax, where it has no options."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        plain = kwargs.get("attn_mask") is None and not kwargs.get("dropout_p") and not kwargs.get("is_causal")
        if func is F.scaled_dot_product_attention and len(args) == 3 and plain and kwargs.get("scale") is None:
            query, key, value = args
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
            return scores.softmax(dim=-1) @ value
        return func(*args, **kwargs)


@contextlib.contextmanager
def evaluating(module: _M) -> Iterator[_M]:
    """A frozen copy of a module to measure with, so that measuring leaves the training untouched."""
    clone = copy.deepcopy(module)
    state = torch.get_rng_state()
    try:
        yield clone.eval().requires_grad_(False)
    finally:
        torch.set_rng_state(state)


def output_problems(output: Path, resume: bool) -> list[str]:
    """What speaks against writing a run into `output`."""
    started = (output / STATE_INFO).is_file() or (output / CHECKPOINT).exists()
    if started and not resume:
        return [f"{output} holds a run already: resume it, or choose another output directory"]
    if resume and not (output / STATE_INFO).is_file():
        return [f"{output} holds no run that could be resumed"]
    return []


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "auto" -> "bf16" on a GPU, "fp32" on a CPU."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace a safetensors file atomically."""
    temporary = path.with_suffix(".tmp")
    save_file({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, temporary)
    os.replace(temporary, path)


def save_state(
    directory: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    settings: object,
    *,
    notes: Mapping[str, Any] | None = None,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write all that a resumed run needs: weights, optimizer, torch's random state, the step. No pickles.

    Both files are replaced atomically; the info file, written last, names the tensor file's step.

    Args:
        directory: of the run.
        step: updates made.
        modules: name -> what learns.
        optimizer: that of their weights.
        settings: of the run; it is resumed with the same ones alone.
        notes, extra: what else the recipe needs, JSON-able and tensors; `read_extra` gives them.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    state = optimizer.state_dict()["state"]
    for index, values in state.items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    tensors |= {f"extra.{key}": value for key, value in (extra or {}).items()}
    target = directory / f"{step:08d}-{STATE}"
    save_tensors(target, tensors)
    info = {"step": step, "state": target.name, "settings": jsonable(settings), "notes": dict(notes or {})}
    write_text(directory / STATE_INFO, json.dumps(info, indent=1) + "\n")
    for old in directory.glob(f"*-{STATE}"):
        if old != target:
            old.unlink()


def load_state(
    directory: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, settings: object
) -> int:
    """Read what `save_state` wrote into the modules and the optimizer.

    Returns:
        The number of steps already made; 0 where there is no state.

    Raises:
        SettingsError: the state was written with other settings.
    """
    path = directory / STATE_INFO
    if not path.is_file():
        return 0
    info = json.loads(path.read_text(encoding="utf-8"))
    now = jsonable(settings)
    if info["settings"] != now:
        different = sorted(k for k in set(now) | set(info["settings"]) if now.get(k) != info["settings"].get(k))
        raise SettingsError(
            f"the run in {directory} was started with other settings ({', '.join(different)}): "
            "resume it with the same ones, or choose another output directory"
        )
    tensors = load_file(directory / info["state"])
    for name, module in modules.items():
        prefix = f"{name}."
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return int(info["step"])


def read_extra(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The `notes` and the `extra` tensors that `save_state` was given; both empty where there is no state."""
    path = directory / STATE_INFO
    if not path.is_file():
        return {}, {}
    info = json.loads(path.read_text(encoding="utf-8"))
    with safe_open(directory / info["state"], framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("extra.")]  # noqa: SIM118  # it is no mapping
        extra = {name.removeprefix("extra."): file.get_tensor(name) for name in names}
    return info.get("notes", {}), extra


def jsonable(settings: object) -> dict[str, Any]:
    """A settings dataclass as JSON-able values."""
    assert is_dataclass(settings)
    assert not isinstance(settings, type)
    values: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=str))
    return values


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


class MetricsLog:
    """Measurements of a run: one JSON object a line in `metrics.jsonl`, drawn in `metrics.png`."""

    def __init__(self, directory: Path, *, resumed_at: int = 0) -> None:
        """Open the log of a run; lines of steps that a resumed run makes again are dropped."""
        self.directory = directory
        path = directory / METRICS
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() and resumed_at else []
        # A line that a killed run left unfinished is later than the state: it is made again.
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        self.rows: list[dict[str, float]] = [row for row in rows if row["step"] <= resumed_at]
        write_text(path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def add(self, step: int, **values: float) -> None:
        """Append a measurement made after `step` updates."""
        row = {"step": step, **{key: round(float(value), 6) for key, value in values.items()}}
        self.rows.append(row)
        with (self.directory / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def draw(self) -> None:
        """Write the chart of everything measured so far."""
        from vlm_core.recipes.chart import draw_chart

        names = list(dict.fromkeys(key for row in self.rows for key in row if key != "step"))
        series = {name: [(row["step"], row[name]) for row in self.rows if name in row] for name in names}
        draw_chart(series).save(self.directory / CHART)
