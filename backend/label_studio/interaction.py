"""What an annotator asks for while auto-annotation is on: the context of an interactive request, read into a question.

The editor sends what was just drawn with a smart tool, or the text that was just typed into a `TextArea`, as
`params.context.result`; docs/interactive.md says what exactly. What comes of it here is one of

    Phrase     a text: look for this
    Inside     areas: look for their label there only
    At         points: pick the parts of their label that they hit
    Like       regions: look for what is like them

Nothing here knows the model. Shapes stay in percent of the displayed image until its size is known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.label_studio.annotation_masks import region_mask
from backend.label_studio.brush import BrushError
from backend.label_studio.interactive_config import InteractiveConfig
from backend.label_studio.shapes import MAX_PERCENT, ShapeError
from backend.label_studio.strokes import strokes_mask
from vlm_core.runs import RunMask, union

MAX_PHRASE_CHARS = 1000
MAX_REGIONS = 1000
MAX_EXEMPLARS = 16
"""Regions that are shown to the model, the newest ones: each costs about as much as an image."""

_LIKE = re.compile(r"\s*(?:show\s+|find\s+)?more\s+like\s+(.+?)\s*[.!]*\s*", re.IGNORECASE | re.DOTALL)
_THE_LAST = ("this", "this one", "that", "that one", "it")
_ALL_OF_ITS_LABEL = ("these", "those", "them")
_AREAS = ("rectangle", "ellipse", "polygon")
_PAINTED = ("brush", "bitmask")


class InteractionError(ValueError):
    """The annotator's question cannot be read or answered; the message says why, to them."""


@dataclass(frozen=True)
class Phrase:
    """A typed phrase.

    Attributes:
        to_name: name of the image.
        text: as typed, without outer white space.
        texts: the alternatives in it, one or more: `|` separates them, as in a label's `prompt`.
        control: name of the control that shall answer; None: the predictor's choice.
    """

    to_name: str
    text: str
    texts: tuple[str, ...]
    control: str | None = None


@dataclass(frozen=True)
class Drawn:
    """One region as Label Studio has it, drawn when the image's size is known.

    Attributes:
        kind: brush, bitmask, rectangle, ellipse or polygon.
        value: the region's `value`.
    """

    kind: str
    value: Mapping[str, Any]

    def mask(self, size_hw: tuple[int, int]) -> RunMask:
        """Its pixels in the displayed image.

        Raises:
            InteractionError: it cannot be drawn, or holds no pixel of the image.
        """
        try:
            if self.value.get("touches"):
                mask = strokes_mask(self.value, size_hw)
            else:
                mask = region_mask(self.kind, self.value, size_hw)
        except (BrushError, ShapeError) as error:
            raise InteractionError(f"the {self.kind} cannot be used: {error}") from None
        if not mask.any():
            raise InteractionError(f"the {self.kind} covers no pixel of the image")
        return RunMask.from_array(mask)


@dataclass(frozen=True)
class Inside:
    """Areas drawn with smart tools.

    Attributes:
        to_name: name of the image.
        labels: the label that was selected; () for none.
        areas: one or more.
    """

    to_name: str
    labels: tuple[str, ...]
    areas: tuple[Drawn, ...]

    def mask(self, size_hw: tuple[int, int]) -> RunMask:
        """The pixels inside any of them. Raises as `Drawn.mask` does."""
        return union([area.mask(size_hw) for area in self.areas])


@dataclass(frozen=True)
class Point:
    """One smart key point: percent of the displayed image, and whether it asks for a part or against it."""

    x_pct: float
    y_pct: float
    positive: bool = True


@dataclass(frozen=True)
class At:
    """Smart key points.

    Attributes:
        to_name: name of the image.
        labels: the label that was selected; () for none.
        points: one or more, in the order they were set.
    """

    to_name: str
    labels: tuple[str, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Like:
    """Regions that show what to look for.

    Attributes:
        to_name: name of the image.
        labels: of these regions; () for none.
        regions: one or more.
        text: what was typed; "" where a smart tool drew the region.
        control: as for `Phrase`.
    """

    to_name: str
    labels: tuple[str, ...]
    regions: tuple[Drawn, ...]
    text: str = ""
    control: str | None = None


Question = Phrase | Inside | At | Like


def read_context(context: object, config: InteractiveConfig, task: object = None) -> Question | None:
    """The question in an interactive request.

    Args:
        context: `params.context`, as the editor made it.
        config: what the labelling config says of text areas.
        task: the request's task; its drafts and annotations hold the regions that "more like this" means.

    Returns:
        The question; None where nothing is asked: the editor sends an empty list when a smart region is deleted,
        and answers of other controls beside those that we read.

    Raises:
        InteractionError: something else than the editor sends, or something that cannot be meant.
    """
    if not isinstance(context, Mapping):
        raise InteractionError(f"the request's context is {_kind_of(context)}, not an object")
    results = context.get("result")
    if not isinstance(results, Sequence) or isinstance(results, str):
        raise InteractionError(f"the context's result is {_kind_of(results)}, not a list of regions")
    if len(results) > MAX_REGIONS:
        raise InteractionError(f"the context holds {len(results)} regions, more than {MAX_REGIONS}")
    for result in results:
        if not isinstance(result, Mapping):
            raise InteractionError(f"a region in the context is {_kind_of(result)}, not an object")
    typed = [result for result in results if result.get("type") == "textarea"]
    if typed:
        return _typed(typed, config, task)
    return _drawn(results)


def _typed(results: Sequence[Mapping[str, Any]], config: InteractiveConfig, task: object) -> Question | None:
    """A phrase. All text areas of the image come along, also those that are no phrases."""
    asked = [result for result in results if _name(result) in config.phrases]
    if not asked:
        return None
    if len(asked) > 1:
        names = ", ".join(f'"{_name(result)}"' for result in asked)
        raise InteractionError(
            f"the text areas {names} all hold a text, and the editor does not say which one was just filled: set "
            'smart="false" on those that are no phrases'
        )
    (result,) = asked
    to_name = _text(result, "to_name")
    texts = _value(result).get("text")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise InteractionError(f"the phrase is {_kind_of(texts)}, not a list of texts")
    if not texts:
        return None  # the last one was just deleted
    # The editor adds to the end; those before were asked already.
    text = " ".join(texts[-1].split())
    if len(text) > MAX_PHRASE_CHARS:
        raise InteractionError(f"the phrase has {len(text)} characters, more than {MAX_PHRASE_CHARS}")
    control = config.phrases[_name(result)]
    like = _LIKE.fullmatch(text)
    if like:
        return _like(to_name, text, like.group(1).casefold(), control, task)
    alternatives = tuple(dict.fromkeys(" ".join(part.split()) for part in text.split("|") if part.strip()))
    if not alternatives:
        raise InteractionError("the phrase is blank: write what to look for")
    return Phrase(to_name, text, alternatives, control)


def _like(to_name: str, text: str, which: str, control: str | None, task: object) -> Like:
    known = _earlier_regions(task, to_name)
    if not known:
        raise InteractionError(
            f'"{text}" needs a region to compare with, and none is saved yet: draw one, and wait until the editor says '
            "that the draft is saved"
        )
    # What the annotator drew counts before what the model gave.
    last = next((region for region in reversed(known) if region.by_hand), known[-1])
    if which in _THE_LAST:
        chosen = [last]
    elif which in _ALL_OF_ITS_LABEL:
        chosen = [region for region in known if region.labels == last.labels]
    else:
        chosen = [region for region in known if which in [label.casefold() for label in region.labels]]
        if not chosen:
            labels = sorted({label for region in known for label in region.labels})
            raise InteractionError(
                f'there is no region of "{which}" to compare with; there are some of {", ".join(labels)}'
                if labels
                else f'there is no region of "{which}" to compare with: no region has a label'
            )
    shown = tuple(region.drawn for region in chosen[-MAX_EXEMPLARS:])
    return Like(to_name, chosen[-1].labels, shown, text, control)


def _drawn(results: Sequence[Mapping[str, Any]]) -> Question | None:
    """What smart tools drew. The editor sends regions of one tool and one label together."""
    regions = [region for region in _regions(results) if region.kind in (*_AREAS, *_PAINTED, "keypoint")]
    if not regions:
        return None
    images = {region.to_name for region in regions}
    if len(images) > 1:
        raise InteractionError(f"the regions belong to several images: {', '.join(sorted(images))}")
    to_name = images.pop()
    labels = tuple(dict.fromkeys(label for region in regions for label in region.labels))
    points = [region for region in regions if region.kind == "keypoint"]
    if points:
        return At(to_name, labels, tuple(_point(region) for region in points))
    shown = tuple(region.drawn for region in regions if region.kind in _PAINTED)
    if shown:
        return Like(to_name, labels, shown[-MAX_EXEMPLARS:])
    return Inside(to_name, labels, tuple(region.drawn for region in regions))


@dataclass(frozen=True)
class _Region:
    """All results that share an id: a bare shape and its `Labels` are two."""

    kind: str
    value: Mapping[str, Any]
    to_name: str
    labels: tuple[str, ...]
    positive: bool
    by_hand: bool

    @property
    def drawn(self) -> Drawn:
        return Drawn(self.kind, self.value)


def _regions(results: Iterable[Mapping[str, Any]]) -> list[_Region]:
    """Regions on an image, in order."""
    by_id: dict[str, list[Mapping[str, Any]]] = {}
    for index, result in enumerate(results):
        by_id.setdefault(str(result.get("id") or f"#{index}"), []).append(result)
    found = []
    for parts in by_id.values():
        # The part that says the shape: a `Labels` result carries its coordinates too, but not its name.
        main = next((part for part in parts if _shape(part)), None)
        if main is None:
            continue
        if main.get("image_rotation"):
            raise InteractionError("the image is rotated in the editor: turn it back and draw again")
        labels = [
            label
            for part in parts
            for key, listed in _value(part).items()
            if str(key).endswith("labels") and isinstance(listed, list)
            for label in listed
            if isinstance(label, str)
        ]
        found.append(
            _Region(
                kind=_shape(main),
                value=_value(main),
                to_name=_text(main, "to_name"),
                labels=tuple(dict.fromkeys(labels)),
                positive=main.get("is_positive") is not False,
                by_hand=main.get("origin") != "prediction",
            )
        )
    return found


def _earlier_regions(task: object, to_name: str) -> list[_Region]:
    """Regions with an area of the newest draft, else of the newest annotation, oldest first."""
    if not isinstance(task, Mapping):
        return []
    for name in ("drafts", "annotations"):
        saved = [item for item in task.get(name) or [] if isinstance(item, Mapping)]
        if not saved:
            continue
        newest = max(saved, key=lambda item: str(item.get("updated_at") or ""))
        results = newest.get("result")
        listed = [item for item in results if isinstance(item, Mapping)] if isinstance(results, list) else []
        regions = [region for region in _regions(listed) if region.kind in (*_AREAS, *_PAINTED)]
        return [region for region in regions if region.to_name == to_name]
    return []


def _shape(result: Mapping[str, Any]) -> str:
    """The shape that a result's type names; "" for none."""
    kind = str(result.get("type") or "").lower().removesuffix("labels")
    return kind if kind in (*_AREAS, *_PAINTED, "keypoint") else ""


def _name(result: Mapping[str, Any]) -> str:
    """The name of the control that made a result; "" for what is no name."""
    name = result.get("from_name")
    return name if isinstance(name, str) else ""


def _point(region: _Region) -> Point:
    return Point(_percent(region.value, "x"), _percent(region.value, "y"), region.positive)


def _percent(value: Mapping[str, Any], key: str) -> float:
    number = value.get(key)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        raise InteractionError(f"the key point's {key} is {_kind_of(number)}, not a number of percent")
    if not abs(number) <= MAX_PERCENT:
        raise InteractionError(f"the key point's {key} is {number} %, far outside the image")
    return float(number)


def _value(result: Mapping[str, Any]) -> Mapping[str, Any]:
    value = result.get("value")
    if not isinstance(value, Mapping):
        raise InteractionError(f"a region's value is {_kind_of(value)}, not an object")
    return value


def _text(result: Mapping[str, Any], key: str) -> str:
    text = result.get(key)
    if not isinstance(text, str) or not text:
        raise InteractionError(f"a region's {key} is {_kind_of(text)}, not a name")
    return text


def _kind_of(value: object) -> str:
    """What a value is, in a reader's words; never the value, which may be large."""
    names = {type(None): "missing", str: "a text", bool: "true or false", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}")
