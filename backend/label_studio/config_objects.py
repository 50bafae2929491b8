"""The objects of a labelling config: which image a control is about, and the field of the data that holds it."""

from __future__ import annotations

import re

from backend.label_studio.config_attributes import ControlAttributes, where
from backend.label_studio.config_xml import LabelConfigError, Tag
from backend.label_studio.prediction_plan import FIELDS

_NOT_CONTROLS = {"filter"}
_HOLD_REGIONS = {"pdf", "video"}
"""Other objects than images on which the editor draws shapes."""
_REPEATED = "which makes one of it for every item of the task's data"


class LeftAloneError(Exception):
    """Why a control is not predicted: one sentence for the project owner."""


class Objects:
    """The named tags of one config."""

    def __init__(self, root: Tag) -> None:
        """Collect them.

        Raises:
            LabelConfigError: a name twice, which would make results ambiguous.
        """
        self._named: dict[str, Tag] = {}
        for tag in root.walk():
            name = tag.get("name")
            if not name or tag.kind in _NOT_CONTROLS:
                continue
            if name in self._named:
                first = self._named[name]
                raise LabelConfigError(
                    f'the name "{name}" of <{tag.name}> is already the name of <{first.name}> in line {first.line}',
                    "Give every tag its own name",
                    line=tag.line,
                )
            self._named[name] = tag
        self._images = {name: tag for name, tag in self._named.items() if tag.kind == "image"}

    def is_image(self, name: str | None) -> bool:
        """Whether a name is that of an image."""
        return name in self._images

    def image_key(self, control: Tag, *, draws: bool) -> str:
        """The field of the data that holds the image of a control.

        Args:
            control: a tag with toName.
            draws: whether it draws regions; other controls may be about anything.

        Raises:
            LeftAloneError: it is about something else, or about no single image.
            LabelConfigError: it is about nothing, or draws on what is no image.
        """
        to_name = required(control, "toName")
        if control.is_inside("repeater"):
            raise LeftAloneError(f"it is inside <Repeater>, {_REPEATED}")
        if "," in to_name:
            raise LeftAloneError(f'toName="{to_name}" names several objects; only one image can be labelled')
        target = self._target(control, to_name)
        if target.kind != "image":
            if not draws or target.kind in _HOLD_REGIONS:
                raise LeftAloneError(f'it is about <{target.name} name="{to_name}">; only images are predicted')
            raise LabelConfigError(
                f'<{control.name} name="{control.get("name")}"> has toName="{to_name}", which is <{target.name}>, '
                "no <Image>",
                "Point toName at an <Image>",
                line=control.line,
            )
        return _field_of(target)

    def items_key(self, ranker: Tag) -> str:
        """The field of the data that holds the items of a `Ranker`.

        Raises:
            LeftAloneError: it ranks something else than the items of one field.
            LabelConfigError: it ranks nothing.
        """
        target = self._target(ranker, required(ranker, "toName"))
        if target.kind != "list":
            raise LeftAloneError(f"it ranks <{target.name}>; only the items of a <List> are predicted")
        if ranker.is_inside("repeater") or target.is_inside("repeater"):
            raise LeftAloneError(f"it is inside <Repeater>, {_REPEATED}")
        field = re.fullmatch(r"\$([^$]+)", (target.get("value") or "").strip())
        if field is None:
            raise LeftAloneError(f'<{target.name} value="{target.get("value")}"> is not one field of the data')
        return field[1]

    def compared_image_key(self, ranker: Tag, attributes: ControlAttributes) -> str:
        """The field of the data that holds the image with which a `Ranker`'s items are compared.

        Raises:
            LeftAloneError: there is no image, or there are several and `model_image` does not say which.
            LabelConfigError: `model_image` names no image.
        """
        names, name = ", ".join(self._images), attributes.text("model_image")
        if name in self._images:
            return _field_of(self._images[name])
        if attributes.written("model_image"):
            raise LabelConfigError(
                f"{where(ranker, 'model_image')}, but no <Image> has that name", self._remedy(), line=ranker.line
            )
        if len(self._images) > 1:
            raise LeftAloneError(f"model_image must say with which image ({names}) its items are compared")
        if not self._images:
            raise LeftAloneError("there is no <Image> with which its items could be compared")
        return _field_of(next(iter(self._images.values())))

    def _target(self, control: Tag, to_name: str) -> Tag:
        target = self._named.get(to_name)
        if target is None:
            raise LabelConfigError(
                f'<{control.name} name="{control.get("name")}"> has toName="{to_name}", but no tag has that name',
                self._remedy(),
                line=control.line,
            )
        return target

    def _remedy(self) -> str:
        if self._images:
            return f"Name one of the images: {', '.join(self._images)}"
        return 'Add <Image name="image" value="$image"/>'


def required(tag: Tag, attribute: str) -> str:
    """An attribute without which a control is none.

    Raises:
        LabelConfigError: it is missing.
    """
    value = (tag.get(attribute) or "").strip()
    if not value:
        which = f' name="{tag.get("name")}"' if tag.get("name") else ""
        raise LabelConfigError(
            f"<{tag.name}{which}> has no {attribute}",
            'Write name="..." and toName="..." with the name of the <Image>',
            line=tag.line,
        )
    return value


def is_control(tag: Tag) -> bool:
    """Whether Label Studio takes a tag for a control."""
    return bool(tag.get("name")) and tag.get("toName") is not None and tag.kind not in _NOT_CONTROLS


def _field_of(image: Tag) -> str:
    if image.is_inside("repeater"):
        raise LeftAloneError(f'<{image.name} name="{image.get("name")}"> is inside <Repeater>, {_REPEATED}')
    value = (image.get("value") or "").strip()
    if not value and image.get("valueList"):
        raise LeftAloneError(f"<{image.name}> in line {image.line} shows a list of images (valueList)")
    if not value:
        raise LabelConfigError(
            f'<{image.name} name="{image.get("name")}"> has no value',
            'Name the field of the data that holds the image, like value="$image"',
            line=image.line,
        )
    if re.fullmatch(r"\$[^$/:?&=]+", value):
        return value[1:]
    if not FIELDS.search(value):
        raise LeftAloneError(f'<{image.name} value="{value}"> names no field of the data, like "$image"')
    return value
