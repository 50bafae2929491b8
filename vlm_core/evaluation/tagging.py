"""Tags: how well each one's score orders the images, as average precision; their mean is mAP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlm_core.errors import DataError
from vlm_core.evaluate import average_precision
from vlm_core.evaluation.bootstrap import PoissonBootstrap
from vlm_core.evaluation.cases import Case, CaseKeeper, jpeg, thumbnail
from vlm_core.evaluation.embeds import embed_images, embed_texts
from vlm_core.runs import BoolMask

if TYPE_CHECKING:
    from vlm_core.model import Model

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
        interval: 95 %, over tags: what other tags of the kind would give. Not over images, where drawing a rare
            tag's one image twice would count as two hits and lift every AP.
        chance: mAP of a random order.
        image_average_precision: of each image's order of all tags, averaged over images that have any.
        image_interval: 95 %, over images.
        tags: by AP, best first.
        cases: kind -> pictures.
    """

    images: int
    mean_average_precision: float
    interval: tuple[float, float]
    chance: float
    image_average_precision: float
    image_interval: tuple[float, float]
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
    advance: Callable[[], None] = lambda: None,
) -> TaggingResult:
    """Score every tag that any image has for every image, by the cosine of their embeddings.

    Memory: an embedding for each image and a score for each image and tag.

    Args:
        model: any model.
        image: gives the image of an index.
        tags: the tags of each image; what another image has and this one does not is false of it.
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
    over_tags, over_images = PoissonBootstrap(), PoissonBootstrap()
    for tag_row in rows:
        over_tags.add(tag_row.average_precision, 1)
    keeper = CaseKeeper()
    values = []
    for index in np.flatnonzero(true.any(axis=1)):
        value = average_precision(scores[index], true[index])
        values.append(value)
        over_images.add(value, 1)
        keeper.offer(
            value,
            lambda i=int(index), v=value: _case(image(i), scores[i], true[i], names, v),  # type: ignore[misc]
        )
    return TaggingResult(
        images=len(tags),
        mean_average_precision=mean_average_precision(scores, true),
        interval=over_tags.interval(),
        chance=float(np.mean([row.chance for row in rows])),
        image_average_precision=float(np.mean(values)),
        image_interval=over_images.interval(),
        tags=tuple(sorted(rows, key=lambda row: (-row.average_precision, row.tag))),
        cases={
            "worst": keeper.worst(),
            "typical": keeper.typical(float(np.median(values))),
            "best": keeper.best(),
        },
    )


def _case(
    picture: Image.Image, scores: npt.NDArray[np.floating], true: BoolMask, names: Sequence[str], value: float
) -> Case:
    order = np.argsort(-scores, kind="stable")
    lines = [(f"{scores[i]:.3f}  {names[i]}", bool(true[i])) for i in order[:_SHOWN_TAGS]]
    place = int(np.flatnonzero(true[order])[0])
    if place >= _SHOWN_TAGS:  # else one would see what is wrong, and not how far off what is right is
        lines.append((f"{scores[order[place]]:.3f}  {names[order[place]]}, no. {place + 1}", True))
    own = ", ".join(name for name, there in zip(names, true, strict=True) if there)
    return Case(value, f"has: {own}", (("image", jpeg(thumbnail(picture))),), tuple(lines))
