"""What the running backend predicts for scenes whose truth is known.

Scenes go to `/predict` the way Label Studio sends tasks, and come back as its brush regions: what is measured is
what an annotator would get, thresholds, upsampling and run-length code included.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import numpy as np

from backend.demo.processes import DemoError
from backend.demo.project import LABELS, label_config, plan, png, truth_of
from backend.label_studio.results import masks_from_results
from vlm_core.demo.scenes import Scene
from vlm_core.evaluate import ABSENT_AREA, foreground_iou
from vlm_core.runs import BoolMask

_PER_REQUEST = 16


@dataclass(frozen=True)
class LabelScore:
    """How well one label is marked over all scenes.

    Attributes:
        iou: intersection over union, both summed over all scenes, those without the object included:
            what is marked where nothing is counts against it. 0..1.
        present: scenes that hold the object.
        false_alarms: scenes without the object of which more than 1 % is marked.
        absent: scenes without the object.
    """

    iou: float
    present: int
    false_alarms: int
    absent: int


@dataclass(frozen=True)
class Measurement:
    """Scores of every label with the version that gave them."""

    model_version: str
    labels: dict[str, LabelScore]


def measure(
    backend_url: str, project: str, scenes: Sequence[Scene], *, basic_auth: tuple[str, str] | None = None
) -> Measurement:
    """Let the backend predict scenes and compare with the truth.

    Args:
        backend_url: the running backend.
        project: as Label Studio names it to backends: "<id>.<unix time of creation>".
        scenes: at least one.
        basic_auth: user and password that the backend wants; None: none.

    Raises:
        DemoError: the backend answers with an error, or with predictions of several versions.
    """
    predicted: list[dict[str, BoolMask]] = []
    versions: set[str] = set()
    for start in range(0, len(scenes), _PER_REQUEST):
        for masks, version in _predict(backend_url, project, scenes[start : start + _PER_REQUEST], basic_auth):
            predicted.append(masks)
            versions.add(version)
    if len(versions) != 1:
        raise DemoError(f"the backend answered with versions {sorted(versions)} in one measurement: measure again")
    truths = [truth_of(scene) for scene in scenes]
    scores = {label: _score(label, scenes, predicted, truths) for label in LABELS}
    return Measurement(versions.pop(), scores)


def _predict(
    backend_url: str, project: str, scenes: Sequence[Scene], basic_auth: tuple[str, str] | None
) -> list[tuple[dict[str, BoolMask], str]]:
    tasks = [{"id": scene.seed, "data": {"image": _data_uri(scene)}} for scene in scenes]
    body = {"tasks": tasks, "project": project, "label_config": label_config(), "params": {"context": None}}
    try:
        response = httpx.post(f"{backend_url}/predict", json=body, timeout=120.0, trust_env=False, auth=basic_auth)
        response.raise_for_status()
        results = response.json()["results"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise DemoError(f"the backend did not predict: {error}") from None
    if len(results) != len(scenes):
        raise DemoError(f"the backend gave {len(results)} answers for {len(scenes)} tasks")
    answers = []
    for scene, item in zip(scenes, results, strict=True):
        if "result" not in item:
            raise DemoError(f"the backend could not predict scene {scene.seed}: {item.get('error', 'no reason given')}")
        size_hw = (scene.size[1], scene.size[0])
        seen = masks_from_results(item["result"], plan(), size_hw=size_hw)
        if seen.unread:
            raise DemoError(f"a region of scene {scene.seed} cannot be read: {seen.unread[0].reason}")
        answers.append((dict(seen.masks), str(item["model_version"])))
    return answers


def _data_uri(scene: Scene) -> str:
    return "data:image/png;base64," + base64.b64encode(png(scene)).decode()


def _score(
    label: str,
    scenes: Sequence[Scene],
    predicted: Sequence[dict[str, BoolMask]],
    truths: Sequence[dict[str, BoolMask]],
) -> LabelScore:
    nothing = [np.zeros((scene.size[1], scene.size[0]), dtype=np.bool_) for scene in scenes]
    marked = [masks.get(label, empty) for masks, empty in zip(predicted, nothing, strict=True)]
    true = [masks.get(label, empty) for masks, empty in zip(truths, nothing, strict=True)]
    absent = [mask for mask, truth in zip(marked, true, strict=True) if not truth.any()]
    alarms = sum(float(mask.mean()) > ABSENT_AREA for mask in absent)
    return LabelScore(foreground_iou(marked, true), len(scenes) - len(absent), alarms, len(absent))
