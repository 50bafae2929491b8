"""Tags: how well each one's score orders the images, as average precision; their mean is mAP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlm_core.errors import DataError
from vlm_core.evaluate import BoolMask, average_precision
from vlm_core.evaluation.cases import Case, CaseKeeper, jpeg, thumbnail
from vlm_core.evaluation.embeds import embed_images, embed_texts

if TYPE_CHECKING:
    from vlm_core.model import Model

_REPLICATES = 200
_SHOWN_TAGS = 5


@dataclass(frozen=True, slots=True)
class TagRow:
    """One tag: its name, how many images have it, its AP, and the AP of a random order (its share of images)."""

    tag: str
    images: int
    average_precision: float
    chance: float


@dataclass(frozen=True, slots=True)
class TaggingResult:
    """All that was measured.

    Attributes:
        images: how many.
        mean_average_precision: macro mAP, each tag counts the same.
        interval: 95 %, over images; of a draw of images, tags that it lacks are left out.
        chance: mAP of a random order.
        image_average_precision: of each image's order of all tags, averaged over images that have any; nan without.
        tags: by AP, best first.
        cases: kind -> pictures.
    """

    images: int
    mean_average_precision: float
    interval: tuple[float, float]
    chance: float
    image_average_precision: float
    tags: tuple[TagRow, ...]
    cases: dict[str, list[Case]]


def mean_average_precision(scores: npt.NDArray[np.floating], true: BoolMask) -> float:
    """Macro mAP: the AP of each column's order of the rows, averaged over columns that have something true.

    Args:
        scores: (images, tags).
        true: (images, tags).

    Raises:
        ValueError: nothing is true, or the shapes differ.
    """
    if scores.shape != true.shape or scores.ndim != 2 or not true.any():
        raise ValueError(f"mAP needs (images, tags) and something true, got {scores.shape} and {true.shape}")
    columns = np.flatnonzero(true.any(axis=0))
    return float(np.mean([average_precision(scores[:, c], true[:, c]) for c in columns]))


def measure_tagging(
    model: Model,
    image: Callable[[int], Image.Image],
    tags: Sequence[Sequence[str]],
    *,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> TaggingResult:
    """Score every tag that any image has for every image, by the cosine of their embeddings.

    Memory: an embedding for each image and a score for each image and tag.

    Args:
        model: any model.
        image: gives the image of an index.
        tags: the tags of each image; what another image has and this one does not is false of it.
        seed: of the interval.
        advance: called once an image.

    Raises:
        DataError: no tag at all.
    """
    names = sorted({tag for own in tags for tag in own})
    if not names:
        raise DataError(f"tagging needs tags: none of {len(tags)} images has one")
    column = {tag: index for index, tag in enumerate(names)}
    true = np.zeros((len(tags), len(names)), dtype=bool)
    for row, own in enumerate(tags):
        true[row, [column[tag] for tag in own]] = True
    scores = embed_images(model, image, len(tags), advance) @ embed_texts(model, names).T

    rows = [
        TagRow(tag, int(true[:, c].sum()), average_precision(scores[:, c], true[:, c]), float(true[:, c].mean()))
        for c, tag in enumerate(names)
    ]
    keeper = CaseKeeper()
    values = []
    for index in np.flatnonzero(true.any(axis=1)):
        value = average_precision(scores[index], true[index])
        values.append(value)
        keeper.offer(
            value,
            lambda i=int(index), v=value: _case(image(i), scores[i], true[i], names, v),  # type: ignore[misc]
        )
    return TaggingResult(
        images=len(tags),
        mean_average_precision=float(np.mean([row.average_precision for row in rows])),
        interval=_interval(scores, true, seed),
        chance=float(np.mean([row.chance for row in rows])),
        image_average_precision=float(np.mean(values)),
        tags=tuple(sorted(rows, key=lambda row: (-row.average_precision, row.tag))),
        cases={
            "worst": keeper.worst(),
            "typical": keeper.typical(float(np.median(values))),
            "best": keeper.best(),
        },
    )


def _interval(scores: npt.NDArray[np.floating], true: BoolMask, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng([seed, 32])
    values = []
    for _ in range(_REPLICATES):
        drawn = rng.integers(len(scores), size=len(scores))
        if true[drawn].any():
            values.append(mean_average_precision(scores[drawn], true[drawn]))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _case(
    picture: Image.Image, scores: npt.NDArray[np.floating], true: BoolMask, names: Sequence[str], value: float
) -> Case:
    order = np.argsort(-scores, kind="stable")[:_SHOWN_TAGS]
    lines = tuple((f"{scores[i]:.3f}  {names[i]}", bool(true[i])) for i in order)
    own = ", ".join(name for name, there in zip(names, true, strict=True) if there)
    return Case(value, f"has: {own}", (("image", jpeg(thumbnail(picture))),), lines)
