"""What annotations choose for whole images, and what several annotators agree on.

- A control that an annotation does not answer says nothing: it may not have been asked, or was passed over. Only where
  several labels may be given, none has to be, and the control is always shown, no answer says that none applies.
- One that is answered says of every label that its annotator could choose whether it applies.
- Where one label applies, the one that most annotators chose counts, and with a tie none; where any number applies, a
  label counts that at least half of those chose who could, as with masks (`backend.label_studio.truth`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.label_studio.config import ControlPlan, PredictionPlan


@dataclass(frozen=True)
class TrueTags:
    """What is said of one image for one control.

    Attributes:
        chosen: labels that apply.
        about: labels of which it is said whether they apply; holds `chosen`.
    """

    chosen: frozenset[str]
    about: frozenset[str]


def tag_controls(plan: PredictionPlan, to_name: str | None = None) -> list[ControlPlan]:
    """The controls whose answers can be learned; `to_name`: of this image only."""
    return [item for item in plan.controls if item.learns_tags and to_name in (None, item.to_name)]


def read_choices(result: Sequence[Any], control: ControlPlan) -> frozenset[str] | None:
    """The labels of a control that an annotation's results choose, by the names of `ControlPlan.answers`.

    What the config does not know (any more) is passed over, and so is a branch of a taxonomy: which of the items below
    it is meant was not said.

    Returns:
        None where nothing is said, or nothing that is known; empty where it is said that none applies.
    """
    named = {label.label: label.label for label in control.answers}
    if control.kind == "choices":
        named = {label.value: label.label for label in control.answers if label.value} | named
    paths = {label.path: label.label for label in control.answers}
    found: set[str] = set()
    given = list(_values(result, control))
    for item in given:
        if control.kind == "taxonomy":
            path = tuple(item) if isinstance(item, list) and all(isinstance(part, str) for part in item) else None
            label = paths.get(path) if path is not None else None
        else:
            label = named.get(item) if isinstance(item, str) else None
        if label is not None:
            found.add(label)
    if not found and (given or not control.empty_means_none):
        return None
    return frozenset(found)


def _values(result: Sequence[Any], control: ControlPlan) -> Iterator[Any]:
    for region in result:
        if not isinstance(region, Mapping):
            continue
        if (region.get("from_name"), region.get("to_name")) != (control.from_name, control.to_name):
            continue
        value = region.get("value")
        chosen = value.get(control.kind) if isinstance(value, Mapping) else None
        yield from chosen if isinstance(chosen, list) else [chosen]


def agreed_tags(votes: Sequence[TrueTags], *, multiple: bool) -> TrueTags | None:
    """What annotators agree on; None where they do not.

    Args:
        votes: of the annotations that answer the control, at least one; where one label applies, each with one or more.
        multiple: any number of labels applies.
    """
    about = frozenset[str]().union(*(vote.about for vote in votes))
    counts = Counter(label for vote in votes for label in vote.chosen)
    if multiple:
        could = {label: sum(label in vote.about for vote in votes) for label in counts}
        return TrueTags(frozenset(label for label, count in counts.items() if 2 * count >= could[label]), about)
    (best, most), *others = counts.most_common(2)
    if others and others[0][1] == most:
        return None  # annotators do not agree
    return TrueTags(frozenset({best}), about)
