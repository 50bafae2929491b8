"""The attributes that a labelling config may carry for us: what they may hold, and what is written almost like one.

A value that is no such value is a `LabelConfigError`, and so is a name that is nearly one of ours: it would change
nothing and say nothing. Other names are not ours.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from backend.label_studio.config_xml import LabelConfigError, Tag
from backend.label_studio.prediction_plan import ControlKind

CONTROL_ATTRIBUTES = (
    "model_score_threshold",
    "model_min_area",
    "model_top_k",
    "model_max_regions",
    "model_tile",
    "model_prompt_from",
    "model_rotate",
    "model_text",
    "model_image",
    "model_answer",
    "model_skip",
)
"""Of control tags. The connection's extra parameters may hold them for all controls at once."""

LABEL_ATTRIBUTES = ("prompt", "not_prompt", "predicted_values", "model_prompt_from", "model_skip")
"""Of `Label` and `Choice`; Label Studio's own `value` and `alias` are read too."""

_OF_REGIONS = frozenset(CONTROL_ATTRIBUTES) - {"model_rotate", "model_text", "model_image", "model_answer"}
_OF_ANSWERS = frozenset({"model_score_threshold", "model_top_k", "model_skip"})
_OTHER_NAMES = {"threshold": "model_score_threshold", "score": "model_score_threshold"}
_ALIKE = 0.8
_EXTRA_PARAMS_REMEDY = 'Write an object, like {"model_score_threshold": 0.4}, or leave them empty'


def _read_by(kind: ControlKind) -> frozenset[str]:
    """The attributes that a control tag may carry."""
    if kind in ("choices", "taxonomy"):
        return _OF_ANSWERS
    if kind == "textarea":
        return _OF_ANSWERS | {"model_text", "model_answer", "prompt", "predicted_values"}
    if kind == "ranker":
        return frozenset({"model_image", "model_skip"})
    return _OF_REGIONS | {"model_rotate"} if kind.startswith("rectangle") else _OF_REGIONS


class ControlAttributes:
    """The attributes of one control: its own, else those of its `Labels` tag, else the connection's."""

    def __init__(self, tags: Sequence[Tag], defaults: Mapping[str, str]) -> None:
        """Reads nothing yet.

        Args:
            tags: the control's tag, and for a bare shape the `Labels` tag beside it; the first that has one wins.
            defaults: of the connection, from `read_extra_params`.
        """
        self._tags = tags
        self._defaults = defaults

    def written(self, name: str) -> bool:
        """Whether one of the tags carries it."""
        return any(tag.get(name) is not None for tag in self._tags)

    def text(self, name: str) -> str | None:
        """As written, without the white space around it; None where nothing is."""
        return self._find(name)[0]

    def flag(self, name: str) -> bool:
        """True or false; false where nothing is written.

        Raises:
            LabelConfigError: something else.
        """
        text, where, line = self._find(name)
        if text is None or text.lower() in ("false", "0", "no", ""):
            return False
        if text.lower() in ("true", "1", "yes"):
            return True
        raise LabelConfigError(where, 'Write "true" or "false"', line=line)

    def probability(self, name: str) -> float | None:
        """A number from 0 to 1.

        Raises:
            LabelConfigError: something else.
        """
        text, where, line = self._find(name)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0.0 <= value <= 1.0:
            raise LabelConfigError(where, "Write a probability from 0 to 1, like 0.4", line=line)
        return value

    def whole(self, name: str, *, least: int) -> int | None:
        """A whole number, `least` or more.

        Raises:
            LabelConfigError: something else.
        """
        text, where, line = self._find(name)
        if text is None:
            return None
        value = _whole(text)
        if value is None or value < least:
            raise LabelConfigError(where, f"Write a whole number, {least} or more", line=line)
        return value

    def tile(self) -> int | Literal["auto"] | None:
        """The narrowest windows of `model_tile`, px; None for "none" and where nothing is written.

        Raises:
            LabelConfigError: something else.
        """
        text, where, line = self._find("model_tile")
        if text is None or text.lower() == "none":
            return None
        if text.lower() == "auto":
            return "auto"
        value = _whole(text)
        if value is None or value < 1:
            raise LabelConfigError(where, 'Write "auto", a number of pixels like 500, or "none"', line=line)
        return value

    def field(self, name: str) -> str | None:
        """The field of the task's data that an attribute names, like "$caption", without the sign.

        Raises:
            LabelConfigError: something else.
        """
        text, where, line = self._find(name)
        return None if text is None else data_field(text, where, line)

    def one_of(self, name: str, values: Sequence[str]) -> str | None:
        """One of a few words.

        Raises:
            LabelConfigError: something else.
        """
        text, where, line = self._find(name)
        if text is not None and text not in values:
            raise LabelConfigError(where, f"Use one of {', '.join(values)}", line=line)
        return text

    def _find(self, name: str) -> tuple[str | None, str, int | None]:
        """The text, where it stands (for messages), and its line."""
        for tag in self._tags:
            own = tag.get(name)
            if own is not None:
                return own.strip(), where(tag, name), tag.line
        value = self._defaults.get(name)
        return value, f"the connection's extra parameters have {name}={value}", None


def where(tag: Tag, attribute: str) -> str:
    """An attribute with its value and its tag, for messages."""
    named = next((f' {key}="{tag.get(key)}"' for key in ("name", "value", "alias") if tag.get(key)), "")
    return f'<{tag.name}{named}> has {attribute}="{tag.get(attribute)}"'


def data_field(text: str, stands: str, line: int | None) -> str:
    """The field's name in "$field".

    Args:
        text: what is written.
        stands: where, for the message.
        line: of the config.

    Raises:
        LabelConfigError: it is no such thing.
    """
    if not re.fullmatch(r"\$[^$\s][^$]*", text):
        name = text.strip("$ ") or "caption"
        raise LabelConfigError(stands, f'Name one field of the task\'s data, like "${name}"', line=line)
    return text[1:]


def label_flag(tag: Tag, name: str) -> bool:
    """A true or false on a `Label` or `Choice`.

    Raises:
        LabelConfigError: something else.
    """
    return ControlAttributes([tag], {}).flag(name)


def read_extra_params(extra_params: Mapping[str, Any] | str | None) -> dict[str, str]:
    """The control attributes in the connection's extra parameters, as text.

    Raises:
        LabelConfigError: no object, or a name that is nearly one of ours.
    """
    if isinstance(extra_params, str):
        if not extra_params.strip():
            return {}
        try:
            extra_params = json.loads(extra_params)
        except (ValueError, RecursionError):
            raise LabelConfigError("the connection's extra parameters are not JSON", _EXTRA_PARAMS_REMEDY) from None
    if extra_params is None:
        return {}
    if not isinstance(extra_params, Mapping):
        raise LabelConfigError(
            f"the connection's extra parameters are a {type(extra_params).__name__}, not an object",
            _EXTRA_PARAMS_REMEDY,
        )
    known: dict[str, str] = {}
    for name, value in extra_params.items():
        if name in CONTROL_ATTRIBUTES:
            known[name] = str(value).lower() if isinstance(value, bool) else str(value)
        elif str(name).lower().startswith("model"):
            _refuse_near(str(name), CONTROL_ATTRIBUTES, f"the connection's extra parameters have {name}", None)
    return known


def unread(tag: Tag, kind: ControlKind) -> Iterator[str]:
    """Why attributes of a control tag change nothing that look as if they should.

    Args:
        tag: the control's.
        kind: of the control.

    Raises:
        LabelConfigError: the name is nearly that of an attribute of ours.
    """
    known = _read_by(kind)
    for name in tag.attributes:
        if name in known:
            continue
        stands = f"the attribute {name} of <{tag.name}> in line {tag.line}"
        if name in LABEL_ATTRIBUTES and kind not in ("textarea", "ranker"):
            yield f"{stands} is read on the tags inside it"
        elif name in CONTROL_ATTRIBUTES or name in LABEL_ATTRIBUTES:
            yield f"{stands} says nothing about such a control"
        elif name.lower().startswith("model"):
            _refuse_near(name, CONTROL_ATTRIBUTES, where(tag, name), tag.line)
            yield f"{stands} is not read"


def unread_of_label(tag: Tag, known: Collection[str]) -> Iterator[str]:
    """The same of a `Label` or `Choice`."""
    for name in tag.attributes:
        if name in known:
            continue
        stands = f"the attribute {name} of <{tag.name}> in line {tag.line}"
        if name in CONTROL_ATTRIBUTES:
            yield f"{stands} is read on the control tag"
        elif name in LABEL_ATTRIBUTES:
            yield f"{stands} says nothing about such a label"
        elif name.lower().startswith("model"):
            _refuse_near(name, LABEL_ATTRIBUTES, where(tag, name), tag.line)
            yield f"{stands} is not read"
        else:
            words = [word for word in LABEL_ATTRIBUTES if not word.startswith("model")]
            _refuse_near(name, words, where(tag, name), tag.line)


def _refuse_near(name: str, attributes: Sequence[str], stands: str, line: int | None) -> None:
    meant = {_plain(attribute): attribute for attribute in attributes}
    meant.update({plain: name for plain, name in _OTHER_NAMES.items() if name in attributes})
    near = difflib.get_close_matches(_plain(name), meant, n=1, cutoff=_ALIKE)
    if near:
        raise LabelConfigError(f"{stands}, which is not read", f"Did you mean {meant[near[0]]}?", line=line)


def _plain(name: str) -> str:
    return re.sub(r"[_\W]", "", name.lower().removeprefix("model"))


def _whole(text: str) -> int | None:
    # int() also reads "1_000" and digits of all scripts, which nobody means here.
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else None
