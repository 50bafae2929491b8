"""Similarities of one image and several tags -> probabilities. Pure functions.

Three questions, three answers:

- **Which one of these?** `single_choice`: softmax over the tags, as CLIP was trained. The probabilities sum to one, so
  each depends on the others.
- **Does this one fit?** A sigmoid of each tag alone, which leaves the others out of it. SigLIP was trained to answer
  so, and brings scale and bias; for another model both can be fitted on labelled images (`fit_tag_calibration`).
- **Does this one fit, for a CLIP that nobody calibrated?** `against_neutral`: a tag must describe the image better than
  words that say nothing. It needs no label and is no frequency: calibrate where the number itself matters.

Sources: Radford et al., arXiv:2103.00020 (softmax, templates); Zhai et al., arXiv:2303.15343 (sigmoid); Kerr et al.,
arXiv:2303.09553, section 3.4 (neutral words); Platt, Probabilistic outputs for support vector machines, 1999.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlm_core.errors import InputError

NEUTRAL_TAGS = ("object", "things", "stuff", "texture")
"""Words that fit any picture; those of the paper."""

_MAX_SCALE = 1e4
"""Where a similarity separates the labels completely, steeper is always better; no cosine is told apart finer."""


@dataclass(frozen=True, slots=True)
class TagCalibration:
    """From a tag's similarity to the probability that it fits: `sigmoid(scale * similarity + bias)`.

    Attributes:
        scale: at least 0, so that a higher similarity never means less.
        bias: added to the scaled similarity; the probability is one half where both cancel.
    """

    scale: float
    bias: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and math.isfinite(self.bias) and self.scale >= 0):
            raise InputError(f"a calibration needs a finite scale >= 0 and bias, got {self.scale} and {self.bias}")

    def probabilities(self, similarities: Tensor) -> Tensor:
        """Any shape -> the same shape, in [0, 1]."""
        return torch.sigmoid(self.scale * similarities + self.bias)


def fit_tag_calibration(similarities: Sequence[float], truths: Sequence[bool]) -> TagCalibration:
    """Fit scale and bias to labelled pairs of image and tag, by Platt's method.

    Maximum likelihood of a logistic regression with Platt's targets, (n+ + 1) / (n+ + 2) and 1 / (n- + 2) instead of 1
    and 0, so that few labels do not give certainty. Pairs of many tags may be mixed: the two numbers are shared.

    Args:
        similarities: `TagScore.similarity` of each pair.
        truths: whether the tag fits the image, in the same order.

    Raises:
        InputError: different lengths, a similarity that is not finite, or not one pair of each kind.
    """
    x, fits = np.asarray(similarities, dtype=np.float64), np.asarray(truths, dtype=bool)
    if x.ndim != 1 or x.shape != fits.shape:
        raise InputError(f"each similarity needs its truth: got shapes {x.shape} and {fits.shape}")
    if not np.isfinite(x).all():
        raise InputError("a similarity is not a finite number: leave that pair out")
    positive, negative = int(fits.sum()), int((~fits).sum())
    if not positive or not negative:
        raise InputError(
            f"a calibration needs tags that fit and tags that do not, got {positive} and {negative}: label some of each"
        )
    from scipy.optimize import minimize

    targets = np.where(fits, (positive + 1) / (positive + 2), 1 / (negative + 2))
    centre, spread = float(x.mean()), float(x.std()) or 1.0
    z = (x - centre) / spread  # cosines of one CLIP lie within a few hundredths of each other

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = parameters[0] * z + parameters[1]
        value = np.mean(np.logaddexp(0, logits) - targets * logits)
        slope = 1 / (1 + np.exp(-np.clip(logits, -500, 500))) - targets
        return float(value), np.array([np.mean(slope * z), np.mean(slope)])

    start = np.array([0.0, math.log((positive + 1) / (negative + 1))])
    bounds = [(0.0, _MAX_SCALE * spread), (None, None)]
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000}
    found = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options=options)
    scale = float(found.x[0]) / spread
    return TagCalibration(scale, float(found.x[1]) - scale * centre)


def single_choice(similarities: Tensor, scale: float) -> Tensor:
    """Softmax over the last axis of similarities times CLIP's temperature scale; sums to one."""
    return (scale * similarities).softmax(-1)


def against_neutral(similarities: Tensor, neutral: Tensor, scale: float) -> Tensor:
    """For each tag alone, the least probability by which it wins against a neutral word.

    Args:
        similarities: (N,), of the tags.
        neutral: (M,), of `NEUTRAL_TAGS` and the same image.
        scale: CLIP's temperature scale.

    Returns:
        (N,), in [0, 1]: the smallest of M softmaxes over two, which is that against the most similar neutral word.
    """
    return torch.sigmoid(scale * (similarities - neutral.max()))
