"""Labelling config -> what to predict: controls, their labels, and the phrases that each label stands for.

The labelling config is the user's interface. Every attribute has a default, so an ordinary config works unchanged.
`docs/labelling-config.md` describes each tag and attribute, for users; the modules beside this one read them:

- `config_xml`: the text -> tags that know their line.
- `config_attributes`: what attributes may hold, and what is written almost like one.
- `config_labels`: the labels of a control with their phrases.
- `config_objects`: which image a control is about.
- `config_conditions`: for which regions a `perRegion` control is asked.
- `config_controls`: all of it, for each control tag.

`extra_params` of the ML backend connection may give the control attributes for all controls at once; a
control's own attribute wins. Label Studio sends `extra_params` to `/setup` only, never with `/predict`.

A mistake that would make the backend guess is a `LabelConfigError`. What is merely not ours (other control
tags, other objects) is left alone and listed in `PredictionPlan.ignored` with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backend.label_studio.config_attributes import read_extra_params
from backend.label_studio.config_controls import ConfigReader
from backend.label_studio.config_xml import LabelConfigError, read_tags
from backend.label_studio.prediction_plan import (
    ControlKind,
    ControlPlan,
    IgnoredControl,
    LabelPrompt,
    PredictionPlan,
)

__all__ = [
    "ControlKind",
    "ControlPlan",
    "IgnoredControl",
    "LabelConfigError",
    "LabelPrompt",
    "PredictionPlan",
    "parse_label_config",
]


def parse_label_config(xml: str, extra_params: Mapping[str, Any] | str | None = None) -> PredictionPlan:
    """Read a labelling config.

    Args:
        xml: the config, as in a project's `label_config` and in `/setup`'s `schema`.
        extra_params: the connection's extra parameters: an object, its JSON, or None. The control attributes are
            read as defaults for all controls; other keys are not ours.

    Returns:
        What to predict, and what is left alone and why.

    Raises:
        LabelConfigError: not usable XML; a control without name or toName, or pointing at nothing or drawing on what
            is no `Image`; a name twice; a label twice in a control with other phrases; an attribute of ours that
            holds no such value, or one that is written almost like ours; an unknown `choice`; `extra_params` that
            are not an object.
    """
    return ConfigReader(read_tags(xml), read_extra_params(extra_params)).read()
