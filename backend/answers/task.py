"""What is read of a task: its id, and the fields of its data that the controls name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from backend.answers.request import TaskError
from backend.label_studio.config import ControlPlan, LabelPrompt


def task_id(task: Any) -> int | None:
    """Label Studio's id of the task; None where it has none."""
    found = task.get("id") if isinstance(task, Mapping) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def task_data(task: Any) -> Mapping[str, Any]:
    """The fields of the task's data. Raises TaskError for what is no task."""
    data = task.get("data") if isinstance(task, Mapping) else None
    if not isinstance(data, Mapping):
        raise TaskError('a task is an object with its fields under "data"')
    return data


def image_uri(control: ControlPlan, data: Mapping[str, Any]) -> str:
    """The address of the image that a control looks at. Raises TaskError where the data has none."""
    uri = control.image_uri(data)
    if uri is None:
        raise TaskError(
            f'the task\'s data has no image address in "{control.image_key}", which the labelling config shows'
        )
    return uri


def with_own_phrases(control: ControlPlan, data: Mapping[str, Any]) -> ControlPlan:
    """The control with the phrases that the task's data holds (`prompt_from`) in their place.

    Raises:
        TaskError: the data has none there.
    """
    if all(label.prompt_from is None for label in control.labels):
        return control
    return replace(control, labels=tuple(_with_own_phrases(label, control, data) for label in control.labels))


def _with_own_phrases(label: LabelPrompt, control: ControlPlan, data: Mapping[str, Any]) -> LabelPrompt:
    phrases = label.phrases(data)
    if not phrases:
        raise TaskError(
            f'the task\'s data has no phrase in "{label.prompt_from}", which "{label.label}" of '
            f'"{control.from_name}" asks for: write a text, or a list of texts that mean the same'
        )
    return replace(label, prompts=phrases)
