"""Which text belongs to which image, in both directions: recall@k and one-of-k."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlm_core.errors import DataError
from vlm_core.evaluate import best_rank, expected_one_of_k, recall_at_k
from vlm_core.evaluation.bootstrap import PoissonBootstrap
from vlm_core.evaluation.cases import Case, CaseKeeper, jpeg, thumbnail
from vlm_core.evaluation.embeds import embed_images, embed_texts

if TYPE_CHECKING:
    from vlm_core.model import Model

RECALL_AT = (1, 5, 10)
ONE_OF = (2, 4, 10)
_ROWS = 256
_SHOWN_TEXTS = 4

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Direction:
    """Ranking in one direction.

    Attributes:
        queries, candidates: how many of each.
        recall: k -> recall@k.
        intervals: k -> 95 % interval of it, over images.
        chance: k -> recall@k of a random order.
        ranks: of the best right candidate, one a query, from 1 on.
    """

    queries: int
    candidates: int
    recall: dict[int, float]
    intervals: dict[int, Interval]
    chance: dict[int, float]
    ranks: tuple[int, ...]

    @property
    def median_rank(self) -> float:
        """The median of `ranks`."""
        return float(np.median(self.ranks))


@dataclass(frozen=True, slots=True)
class MatchingResult:
    """All that was measured.

    Attributes:
        images, texts: how many images, and how many different texts.
        text_of_image: each image ranks all texts; any of its own is right.
        image_of_text: each text ranks all images; any image that has it is right.
        one_of_k: k -> how often an image prefers a text of its own to k - 1 texts of other images, averaged over its
            texts and every draw of the others; only k that the texts suffice for.
        cases: kind -> pictures.
    """

    images: int
    texts: int
    text_of_image: Direction
    image_of_text: Direction
    one_of_k: dict[int, float]
    cases: dict[str, list[Case]]


def measure_matching(
    model: Model,
    image: Callable[[int], Image.Image],
    texts: Sequence[Sequence[str]],
    *,
    advance: Callable[[], None] = lambda: None,
) -> MatchingResult:
    """Rank all texts for each image and all images for each text, by the cosine of their embeddings.

    Memory: an embedding for each image and each text, and some hundred rows of scores at a time.

    Args:
        model: any model.
        image: gives the image of an index.
        texts: the texts of each image, one or more; images may share some.
        advance: called once an image.

    Raises:
        DataError: fewer than two images or two different texts, or an image without any.
    """
    unique, owned, owners = group_texts(texts)
    image_embeds = embed_images(model, image, len(texts), advance)
    text_embeds = embed_texts(model, unique)
    image_ranks = right_ranks(image_embeds, text_embeds, owned)
    text_ranks = right_ranks(text_embeds, image_embeds, owners)

    wrong = np.array([len(unique) - len(set(own)) for own in owned])
    below, against = _pairs_below(image_embeds, text_embeds, owned)
    keeper = CaseKeeper()
    for index in range(len(texts)):
        value = 1 - (image_ranks[index] - 1) / max(int(wrong[index]), 1)
        keeper.offer(
            float(value),
            lambda i=index, v=value: _case(  # type: ignore[misc]
                image(i), image_embeds[i] @ text_embeds.T, unique, set(owned[i]), int(image_ranks[i]), float(v)
            ),
        )
    right_images = [len(rows) for rows in owners]
    return MatchingResult(
        images=len(texts),
        texts=len(unique),
        text_of_image=_direction(
            image_ranks, [[i] for i in range(len(texts))], [len(set(o)) for o in owned], len(unique)
        ),
        image_of_text=_direction(text_ranks, _first_owner(owners, len(texts)), right_images, len(texts)),
        one_of_k={k: expected_one_of_k(below, against, k) for k in ONE_OF if wrong.min() >= k - 1},
        cases={
            "worst": keeper.worst(),
            "typical": keeper.typical(float(np.median(1 - (image_ranks - 1) / np.maximum(wrong, 1)))),
            "best": keeper.best(),
        },
    )


def group_texts(texts: Sequence[Sequence[str]]) -> tuple[list[str], list[list[int]], list[list[int]]]:
    """Who has which text.

    Args:
        texts: those of each image.

    Returns:
        The different texts in order of appearance; the places among them of each image's texts; the images of each.

    Raises:
        DataError: fewer than two images or two different texts, or an image without any.
    """
    unique = list(dict.fromkeys(text for own in texts for text in own))
    if len(texts) < 2 or len(unique) < 2 or not all(texts):
        raise DataError(
            f"matching needs two images with different texts or more, got {len(texts)} images with {len(unique)} texts"
        )
    column = {text: index for index, text in enumerate(unique)}
    owned = [[column[text] for text in own] for own in texts]
    owners: list[list[int]] = [[] for _ in unique]
    for row, own in enumerate(owned):
        for index in dict.fromkeys(own):
            owners[index].append(row)
    return unique, owned, owners


def right_ranks(
    queries: npt.NDArray[np.float32], candidates: npt.NDArray[np.float32], right: Sequence[Sequence[int]]
) -> npt.NDArray[np.int64]:
    """The rank of the best right candidate of each query by the product of their embeddings, from 1 on.

    Args:
        queries: (N, E).
        candidates: (M, E).
        right: for each query the places of its right candidates, one or more.
    """
    ranks = []
    for start in range(0, len(queries), _ROWS):
        scores = queries[start : start + _ROWS] @ candidates.T
        mask = np.zeros(scores.shape, dtype=bool)
        for row, own in enumerate(right[start : start + _ROWS]):
            mask[row, list(own)] = True
        ranks.append(best_rank(scores, mask))
    return np.concatenate(ranks)


def _pairs_below(
    images: npt.NDArray[np.float32], texts: npt.NDArray[np.float32], owned: Sequence[Sequence[int]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each pair of an image and a text of its own: wrong texts that score less, and wrong texts there are."""
    below, wrong = [], []
    for row, own in enumerate(owned):
        scores = texts @ images[row]
        mine = list(dict.fromkeys(own))
        others = np.sort(np.delete(scores, mine))
        below.append(np.searchsorted(others, scores[mine], side="left"))
        wrong.append(np.full(len(mine), others.size))
    return np.concatenate(below), np.concatenate(wrong)


def _first_owner(owners: Sequence[Sequence[int]], images: int) -> list[list[int]]:
    """The texts of each image, each text at the first image that has it: the groups that are drawn together."""
    groups: list[list[int]] = [[] for _ in range(images)]
    for text, rows in enumerate(owners):
        groups[rows[0]].append(text)
    return groups


def _direction(
    ranks: npt.NDArray[np.int64], groups: Sequence[Sequence[int]], right: Sequence[int], candidates: int
) -> Direction:
    at = [k for k in RECALL_AT if k <= candidates]
    bootstraps = {k: PoissonBootstrap() for k in at}
    for group in groups:
        for k, bootstrap in bootstraps.items():
            bootstrap.add(float(np.count_nonzero(ranks[list(group)] <= k)), len(group))
    # A random order has none of r right ones among its first k with the chance C(M - r, k) / C(M, k).
    chance = {}
    for k in at:
        misses = np.ones(len(right))
        for drawn in range(k):
            misses *= np.maximum(candidates - np.asarray(right) - drawn, 0) / (candidates - drawn)
        chance[k] = float(1 - misses.mean())
    return Direction(
        queries=len(ranks),
        candidates=candidates,
        recall={k: recall_at_k(ranks, k) for k in at},
        intervals={k: bootstrap.interval() for k, bootstrap in bootstraps.items()},
        chance=chance,
        ranks=tuple(int(rank) for rank in ranks),
    )


def _case(
    picture: Image.Image,
    scores: npt.NDArray[np.float32],
    texts: Sequence[str],
    right: set[int],
    rank: int,
    value: float,
) -> Case:
    order = [int(i) for i in np.argsort(-scores, kind="stable")[:_SHOWN_TEXTS]]
    if not right & set(order):
        order.append(max(right, key=lambda i: float(scores[i])))
    lines = tuple((f"{scores[i]:.3f}  {texts[i]}", i in right) for i in order)
    return Case(value, f"its best text is no. {rank}", (("image", jpeg(thumbnail(picture))),), lines)
