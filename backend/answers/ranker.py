"""Rankers: the items of a list in the task's data, from the one that describes the image best."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from typing import Any

from backend.answers.request import ControlAnswer, TaskError
from backend.answers.view import ImageView
from backend.label_studio.config import ControlPlan
from backend.label_studio.prediction_plan import read_field
from backend.label_studio.results import answer_region

_TEXTS = ("title", "body", "html")
"""Fields of an item that the editor shows, in its order."""
_TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True)
class RankedItem:
    """One item of a list.

    Attributes:
        id: as the editor and results name it.
        text: what is compared with the image.
    """

    id: str
    text: str


def read_items(control: ControlPlan, data: Mapping[str, Any]) -> list[RankedItem]:
    """The items that a ranker is asked for.

    An item is an object with an `id` and a text in `title`, `body` or `html` (all that it has, joined), or a string,
    which is its own id.

    Raises:
        TaskError: no list there, an item without id or text, or an id twice.
    """
    field = control.items_from or ""
    found = read_field(data, field)
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise TaskError(f'the task\'s data has no list in "{field}", whose items "{control.from_name}" ranks')
    items = [_item(item, f'item {number} in "{field}"') for number, item in enumerate(found, start=1)]
    twice = sorted(key for key, times in Counter(item.id for item in items).items() if times > 1)
    if twice:
        raise TaskError(f'"{field}" has several items with the id {twice[0]!r}: give each its own')
    return items


def answer_ranker(control: ControlPlan, items: Sequence[RankedItem], view: ImageView) -> ControlAnswer:
    """All items, best first: the editor does not show those that are left out.

    Returns:
        A region, or none where the list is empty; and its score, the probability of the first item.
    """
    if not items:
        return ControlAnswer([], [])
    scores = view.rank(list(dict.fromkeys(item.text for item in items)))
    ranked = sorted(items, key=lambda item: -scores[item.text].similarity)
    score = scores[ranked[0].text].probability
    value = {"ranker": {control.from_name: [item.id for item in ranked]}}
    return ControlAnswer([answer_region(control, value, round(score, 4))], [score])


def _item(item: Any, which: str) -> RankedItem:
    if isinstance(item, str) and item.strip():
        return RankedItem(item, item.strip())
    if not isinstance(item, Mapping):
        raise TaskError(f"{which} is neither an object with id and title nor a text")
    found = item.get("id")
    if isinstance(found, bool) or not isinstance(found, int | str) or found == "":
        raise TaskError(f"{which} has no id")
    texts = [str(item[name]) for name in _TEXTS if isinstance(item.get(name), str)]
    text = " ".join(unescape(_TAG.sub(" ", " ".join(texts))).split())
    if not text:
        raise TaskError(f"{which} has no text in {', '.join(_TEXTS[:-1])} or {_TEXTS[-1]}")
    return RankedItem(str(found), text)
