"""Recipe: fit a head for one question to annotated images' embeddings.

Multinomial logistic regression where one label applies, one logistic regression a label where any number does, on the
frozen encoder's embeddings, by L-BFGS to the optimum: convex, so the result does not depend on an order or a seed.
Weights are pulled towards where they start, which is what the text says of each label, by an L2 penalty. Without data a
label keeps its text; with little it moves little (CLAP, Silva-Rodriguez et al., arXiv:2312.12730). The pull has one
strength, which cross-validation chooses (`training_jobs.tag_ladder`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax

from vlm_core.tag_head import TagHead

Floats = NDArray[np.float64]

_BIAS_PULL = 1e-3
"""Keeps the biases finite where an answer is never given; weak, for how often a label applies is quickly learned."""


@dataclass(frozen=True)
class TagExample:
    """One annotated image, for one question.

    Attributes:
        image: content hash.
        embedding: (E,), L2-normalised.
        chosen: labels that apply, at least one where one has to.
        about: labels of which it is said whether they apply; holds `chosen`.
    """

    image: str
    embedding: NDArray[np.float32]
    chosen: frozenset[str]
    about: frozenset[str]


def fit(examples: Sequence[TagExample], start: TagHead, pull: float) -> TagHead:
    """Fit the head of one question.

    Args:
        examples: at least one.
        start: where it begins, with all labels of the question.
        pull: strength, above 0, of the pull towards the start. The loss is summed over images and the embeddings are
            centred and scaled to a mean square norm of one, so that 1 is a pull that some ten images begin to overcome.

    Raises:
        ValueError: no example, or a pull that is not above 0.
    """
    if not examples or not pull > 0:
        raise ValueError(f"fitting needs examples and a pull above 0, got {len(examples)} and {pull}")
    x = np.stack([example.embedding for example in examples]).astype(np.float64)
    chosen, about = (
        np.array([[label in getattr(example, name) for label in start.labels] for example in examples])
        for name in ("chosen", "about")
    )
    weight, bias = start.weight.double().cpu().numpy(), start.bias.double().cpu().numpy()
    given = x @ weight.T + bias
    centre = x.mean(0)
    spread = float(np.sqrt(np.square(x - centre).sum(1).mean())) or 1.0
    z = (x - centre) / spread
    labels, width = weight.shape

    def loss(parameters: Floats) -> tuple[float, Floats]:
        moved, shift = parameters[:-labels].reshape(labels, width), parameters[-labels:]
        value, slope = (_each if start.multiple else _one)(given + z @ moved.T + shift, chosen, about)
        value += pull / 2 * float(np.square(moved).sum()) + _BIAS_PULL / 2 * float(np.square(shift).sum())
        slopes = np.concatenate([(slope.T @ z + pull * moved).reshape(-1), slope.sum(0) + _BIAS_PULL * shift])
        return value, slopes

    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-8}
    found = minimize(loss, np.zeros(weight.size + labels), jac=True, method="L-BFGS-B", options=options).x
    moved, shift = found[:-labels].reshape(labels, width), found[-labels:]
    return TagHead(
        labels=start.labels,
        weight=torch.from_numpy(weight + moved / spread).float(),
        bias=torch.from_numpy(bias + shift - moved @ centre / spread).float(),
        scale=start.scale,
        offset=start.offset,
        multiple=start.multiple,
    )


def entropy(head: TagHead, examples: Sequence[TagExample]) -> list[float]:
    """The cross entropy of each example, nats; of several answers the mean over its labels."""
    found = []
    for example in examples:
        logits = head.logits(torch.from_numpy(example.embedding)).double().cpu().numpy()[None]
        chosen, about = (
            np.array([[label in part for label in head.labels]]) for part in (example.chosen, example.about)
        )
        value, _ = (_each if head.multiple else _one)(logits, chosen, about)
        found.append(value / (max(1, int(about.sum())) if head.multiple else 1))
    return found


def _one(logits: Floats, chosen: NDArray[np.bool_], about: NDArray[np.bool_]) -> tuple[float, Floats]:
    """Loss and slope where one label applies, of those that could be chosen."""
    able = np.where(about, logits, -1e30)  # no infinity: it would make a slope of nothing times infinity
    target = chosen / np.maximum(1, chosen.sum(1, keepdims=True))
    return -float((target * np.where(about, log_softmax(able, axis=1), 0.0)).sum()), softmax(able, axis=1) - target


def _each(logits: Floats, chosen: NDArray[np.bool_], about: NDArray[np.bool_]) -> tuple[float, Floats]:
    """Loss and slope where each label applies or not, of those that could be chosen."""
    losses = np.logaddexp(0.0, logits) - chosen * logits
    return float((about * losses).sum()), about * (expit(logits) - chosen)
