"""A predictor over fakes for plans made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backend.label_studio.config import ControlPlan, LabelPrompt, PredictionPlan
from backend.model_store import ModelStore, ServingModel
from backend.plans import ConfigPlan, ExtraParams, PlanCache, PredictionCheck
from backend.predictor import Deadline, ImageSource, Predictor
from backend.versions import VersionStore
from tests.backend.fakes import ColourModel

Item = dict[str, Any]

_TAGS = {"keypoint": "KeyPoint", "textarea": "TextArea"}


def label(name: str, *prompts: str, **changes: Any) -> LabelPrompt:
    """A label; without phrases, its name is the phrase."""
    return LabelPrompt(name, prompts or (name,), name, **changes)


def control(kind: str, *labels: LabelPrompt, name: str | None = None, **changes: Any) -> ControlPlan:
    """A control of the image "i", whose address is in the field "image"; called as its kind unless it has a name."""
    settings: dict[str, Any] = {"to_name": "i", "image_key": "image", "min_area": 1, **changes}
    if kind in ("brush", "bitmask", "polygon", "rectangle", "ellipse", "keypoint"):
        settings.setdefault("labels_name", f"{name or kind}-labels")
    return ControlPlan(kind, name or kind, labels=labels, **settings)  # type: ignore[arg-type]  # a str


def label_config(controls: Sequence[ControlPlan]) -> str:
    """A labelling config that has the controls, for Label Studio's own check of what is answered."""
    images = {c.to_name: f'<Image name="{c.to_name}" value="${c.image_key}"/>' for c in controls if c.kind != "ranker"}
    tags = list(images.values())
    for c in controls:
        stem = c.kind.removesuffix("labels")
        tag = _TAGS.get(stem, stem.capitalize()) + ("Labels" if c.kind.endswith("labels") else "")
        extra = ' choice="multiple"' if c.multiple else ""
        extra += ' perRegion="true"' if c.per_region else ""
        if c.kind == "ranker":
            tags.append(f'<List name="{c.to_name}" value="${c.items_from}"/>')
        if c.labels_name is not None:
            tags.append(f'<Labels name="{c.labels_name}" toName="{c.to_name}">{_labels(c, "Label")}</Labels>')
        inner = "" if c.labels_name is not None or c.kind in ("textarea", "ranker") else _inner(c)
        tags.append(f'<{tag} name="{c.from_name}" toName="{c.to_name}"{extra}>{inner}</{tag}>')
    return f"<View>{''.join(tags)}</View>"


def _inner(c: ControlPlan) -> str:
    if c.kind != "taxonomy":
        return _labels(c, "Choice" if c.kind == "choices" else "Label")
    # Paths of two steps at most are enough here.
    roots: dict[str, list[str]] = {}
    for item in c.labels:
        roots.setdefault(item.path[0], []).extend(item.path[1:])
    return "".join(
        f'<Choice value="{root}">{"".join(f"""<Choice value="{name}"/>""" for name in below)}</Choice>'
        for root, below in roots.items()
    )


def _labels(c: ControlPlan, tag: str) -> str:
    return "".join(f'<{tag} value="{item.label}"/>' for item in c.labels)


class HandPlans(PlanCache):
    """Gives one plan for every config."""

    def __init__(self, controls: Sequence[ControlPlan]) -> None:
        super().__init__()
        self.made = ConfigPlan(PredictionPlan(tuple(controls)), PredictionCheck(label_config(controls)))

    def get(self, label_config: str, extra_params: Mapping[str, Any] | None = None) -> ConfigPlan:
        return self.made


class Bench:
    """Predicts tasks for controls, in one directory; close it."""

    def __init__(self, data_dir: Path, images: ImageSource, model: ServingModel | None = None) -> None:
        self.model = model or ColourModel()
        self._images = images
        self._extra_params = ExtraParams(data_dir)
        self._store = ModelStore(lambda: self.model, VersionStore(data_dir))
        self._store.start()
        self._open: list[Predictor] = []

    def predict(self, controls: Sequence[ControlPlan], *tasks: Mapping[str, Any]) -> list[Item]:
        """The item of each task; a task is its data. Every call starts without cached features."""
        predictor = Predictor(self._store, self._images, self._extra_params, plans=HandPlans(controls), fetch_threads=2)
        self._open.append(predictor)
        numbered = [{"id": number, "data": data} for number, data in enumerate(tasks, start=1)]
        answer = predictor.predict(numbered, project_id=7, label_config="<View/>", deadline=Deadline(60))
        return answer.items

    def one(self, controls: Sequence[ControlPlan], data: Mapping[str, Any]) -> list[Item]:
        """The results of one task, which must succeed."""
        (item,) = self.predict(controls, data)
        assert "error" not in item, item
        results: list[Item] = item["result"]
        return results

    def error(self, controls: Sequence[ControlPlan], data: Mapping[str, Any]) -> str:
        """Why one task has no prediction."""
        (item,) = self.predict(controls, data)
        assert "result" not in item
        return str(item["error"])

    def close(self) -> None:
        for predictor in self._open:
            predictor.close()
