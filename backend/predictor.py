"""Tasks -> predictions, as many and in the same order, until a deadline.

An item of the answer is a prediction, `{"model_version", "score", "result"}`, where an empty `result` means that
nothing was found; or `{"error"}` without `result`, and then Label Studio stores nothing and may ask again. One
bad task costs itself only.

Images are fetched by several threads, a few ahead of the model, so that a batch of any size holds few images in
memory. The model sees one image at a time and hands itself over between images, so that a task that an
annotator opens does not wait for a batch.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from backend import decoding
from backend.choices import choose, choose_each
from backend.disk_cache import DiskCache
from backend.features import FeatureCache, Kind
from backend.inference import Inference
from backend.label_studio.config import ControlPlan, LabelConfigError, PredictionPlan
from backend.label_studio.images import ImageError
from backend.label_studio.results import Region, brush_region, choices_region, rectangle_region
from backend.model_store import ModelStore, ModelUnavailableError, ServedVersion, ServingModel
from backend.plans import ConfigPlan, ExtraParams, PlanCache
from backend.versions import VersionError, effective_threshold
from vlm_core.errors import VLMError

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

Item = dict[str, Any]

_OVERSAMPLING = 2
"""A large JPEG is decoded at no less than so many times what the model sees: the grey levels that it then sees differ
by half a level of 255 on average, and the file takes a third of the time."""


_GRACE_S = 0.2


class FetchedImage(Protocol):
    """What the predictor needs of an image that was fetched."""

    @property
    def image(self) -> Image.Image:
        """RGB, EXIF orientation applied; decoded when it is first wanted. May be smaller than `size_hw`."""

    @property
    def sha256(self) -> str:
        """Of the file."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """As the annotator sees it, px."""


class ImageSource(Protocol):
    """Where images come from; `backend.label_studio.images.ImageFetcher`."""

    def fetch(
        self, uri: str, *, task_id: int | None = None, project_id: int | None = None, at_least_px: int | None = None
    ) -> FetchedImage:
        """Get one image, or raise `ImageError` with a reason for the project owner."""


class Deadline:
    """A moment by which an answer must be given."""

    def __init__(self, seconds: float) -> None:
        """Starts to run now."""
        self.seconds = seconds
        self._ends = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left, 0.0 when it has passed."""
        return max(0.0, self._ends - time.monotonic())


@dataclass(frozen=True)
class Answer:
    """What `/predict` says.

    Attributes:
        items: one per task, in order.
        model_version: that all predictions carry; "" when none could be made.
    """

    items: list[Item]
    model_version: str

    @property
    def failed(self) -> int:
        """Tasks without a prediction."""
        return sum("result" not in item for item in self.items)


class _TaskError(Exception):
    """A reason, fit for a client, why one task has no prediction."""


@dataclass(frozen=True)
class _Job:
    """What all tasks of one request share."""

    config: ConfigPlan
    controls: tuple[ControlPlan, ...]
    version: ServedVersion
    model: ServingModel
    project_id: int
    deadline: Deadline


class Predictor:
    """Answers tasks. Safe to share between threads."""

    def __init__(
        self,
        store: ModelStore,
        images: ImageSource,
        extra_params: ExtraParams,
        *,
        plans: PlanCache | None = None,
        fetch_threads: int = 8,
        feature_cache_bytes: int = 256 * 1024 * 1024,
        feature_files: DiskCache | None = None,
    ) -> None:
        """Starts no thread until the first task.

        Args:
            store: which version serves which project.
            images: where images come from.
            extra_params: of the projects' connections.
            plans: parsed labelling configs; default its own cache.
            fetch_threads: tasks worked on at the same time, over all requests.
            feature_cache_bytes: room in memory for the features of images that were seen lately.
            feature_files: more of them on disk; None: none.
        """
        self._store = store
        self._images = images
        self._extra_params = extra_params
        self._plans = plans or PlanCache()
        self._window = fetch_threads
        self._pool = ThreadPoolExecutor(fetch_threads, thread_name_prefix="task")
        self._inference = Inference(store, FeatureCache(feature_cache_bytes, feature_files))

    def close(self) -> None:
        """Start no further task."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._inference.close()

    def predict(
        self,
        tasks: Sequence[Any],
        *,
        project_id: int,
        label_config: str,
        deadline: Deadline,
        context: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Answer tasks of one project.

        Args:
            tasks: each with `id` and `data`, as Label Studio sends them; what is not is that task's error.
            project_id: Label Studio's id.
            label_config: the XML of the project.
            deadline: tasks that are not done by then get an error.
            context: of an interactive request: regions that the annotator has just drawn. Where they name labels,
                only those labels are answered.

        Returns:
            One item per task. Never raises for what tasks, configs, images or versions hold.
        """
        if not tasks:
            return Answer([], "")
        try:
            job = self._prepare(project_id, label_config, deadline, context)
        except (LabelConfigError, ModelUnavailableError, VersionError, _TaskError, VLMError) as error:
            reason = _public(error)
            log.warning("project=%d tasks=%d no prediction: %s", project_id, len(tasks), error)
            return Answer([{"error": reason} for _ in tasks], "")
        items: list[Item | None] = [None] * len(tasks)
        for index, item in self._answered(tasks, job):
            items[index] = item
        late = {"error": _late(deadline)}
        return Answer([dict(late) if item is None else item for item in items], job.version.name)

    def _prepare(
        self, project_id: int, label_config: str, deadline: Deadline, context: Mapping[str, Any] | None
    ) -> _Job:
        self._store.wait(deadline.remaining())
        self._store.model()
        config = self._plans.get(label_config, self._extra_params.of(project_id))
        version, model = self._store.serving(project_id, config.plan)
        controls = servable_controls(config.plan, model)
        if not controls:
            raise _TaskError(_nothing_to_do(config.plan, model))
        if context is not None:
            controls = _asked_for(controls, context)
        return _Job(config, controls, version, model, project_id, deadline)

    def _answered(self, tasks: Sequence[Any], job: _Job) -> Iterator[tuple[int, Item]]:
        """Items as they are done, until the deadline.

        A few tasks are worked on at the same time: images are fetched and decoded, and masks drawn, while the model
        works for others, and what waits for the model is answered in one batch.
        """
        waiting: dict[Future[Item], int] = {}
        following = iter(range(len(tasks)))
        try:
            while True:
                while len(waiting) < self._window and (index := next(following, None)) is not None:
                    waiting[self._pool.submit(self._item, tasks[index], job)] = index
                if not waiting:
                    return
                done, _ = wait(waiting, timeout=job.deadline.remaining(), return_when=FIRST_COMPLETED)
                late = not job.deadline.remaining()
                if late:  # those that wait for the model give up at this moment, and say why
                    done, _ = wait(waiting, timeout=_GRACE_S)
                for future in done:
                    yield waiting.pop(future), future.result()
                if late:
                    return
        finally:
            for future in waiting:
                future.cancel()

    def _fetch(self, task: Any, job: _Job) -> dict[str, FetchedImage]:
        """All images that the controls of one task look at, by address."""
        found: dict[str, FetchedImage] = {}
        for control in job.controls:
            uri = _image_uri(control, task)
            if uri not in found:
                found[uri] = self._images.fetch(
                    uri,
                    task_id=_task_id(task),
                    project_id=job.project_id,
                    at_least_px=_OVERSAMPLING * job.model.input_px,
                )
        return found

    def _item(self, task: Any, job: _Job) -> Item:
        """One task's prediction, or its error."""
        try:
            if not job.deadline.remaining():  # it waited behind others; nobody would see the result
                raise _TaskError("the time was up before the image was fetched: ask again")
            fetched = self._fetch(task, job)
            regions: list[Region] = []
            scores: list[float] = []
            for uri, image in fetched.items():
                own = [control for control in job.controls if _image_uri(control, task) == uri]
                for region_list, score_list in self._answer_image(image, own, job):
                    regions += region_list
                    scores += score_list
            item: Item = {
                "model_version": job.version.name,
                "score": decoding.mean_score(scores),
                "result": regions,
            }
            refused = job.config.check.errors(item)
            if refused:
                raise _TaskError(f"the prediction does not fit the labelling config: {'; '.join(refused)}")
        except (_TaskError, ImageError, VLMError) as error:
            log.warning("project=%d task=%s no prediction: %s", job.project_id, _task_id(task), error)
            return {"error": _public(error)}
        except Exception as error:
            # Whatever went wrong, the neighbours are still answered.
            reference = uuid.uuid4().hex[:8]
            log.exception("project=%d task=%s reference=%s", job.project_id, _task_id(task), reference)
            kind = "out of memory" if isinstance(error, MemoryError) or _is_oom(error) else "an unexpected error"
            return {"error": f"{kind} on the server; its log has the details under {reference}"}
        return item

    def _answer_image(
        self, fetched: FetchedImage, controls: Sequence[ControlPlan], job: _Job
    ) -> Iterator[tuple[list[Region], list[float]]]:
        """Regions and scores of each control that looks at one image."""
        model, deadline = job.model, job.deadline
        tagged = [control for control in controls if control.kind == "choices"]
        prompts = _phrases(control for control in controls if control.kind != "choices")
        both = bool(prompts and tagged) and model.one_view
        grids: dict[str, decoding.Logits] = {}
        ranked: dict[str, dict[str, float]] = {}
        if prompts:
            kind: Kind = "both" if both else "masks"
            features = self._inference.features(kind, model, fetched, deadline.remaining())
            grids = self._inference.grids(model, features, prompts, deadline.remaining())
        if tagged and not both:
            features = self._inference.features("tags", model, fetched, deadline.remaining())
        for control in tagged:
            tags = self._inference.ranking(
                model, features, _phrases([control]), deadline.remaining(), multiple=_each(control, job)
            )
            ranked[control.from_name] = {tag.tag: tag.probability for tag in tags}
        for control in controls:
            if control.kind == "choices":
                yield _choices(control, ranked[control.from_name], each=_each(control, job))
            else:
                yield _masks(control, grids, fetched.size_hw, job)


def _late(deadline: Deadline) -> str:
    return f"not done within {deadline.seconds:g} s: ask again, what is done is not asked twice"


def servable_controls(plan: PredictionPlan, model: ServingModel) -> tuple[ControlPlan, ...]:
    """The controls that this model can answer: one that only ranks tags answers `Choices` only."""
    return tuple(c for c in plan.controls if c.kind == "choices" or model.can_segment)


def _masks(
    control: ControlPlan, grids: Mapping[str, decoding.Logits], size_hw: tuple[int, int], job: _Job
) -> tuple[list[Region], list[float]]:
    import numpy as np

    regions: list[Region] = []
    scores: list[float] = []
    least = decoding.least_area_px(control.min_area, size_hw)
    version = job.version
    for label in control.labels:
        if not job.deadline.remaining():  # hundreds of labels on a large image take their time
            raise _TaskError(_late(job.deadline))
        found = decoding.decode_label(
            np.stack([grids[phrase] for phrase in label.prompts]),
            size_hw,
            threshold=effective_threshold(label.label, control.threshold, version.manifest),
            min_area_px=least,
            temperature=version.temperature(label.label),
        )
        scores.append(found.score)
        if found.mask is None:
            continue
        if control.kind == "brushlabels":
            regions.append(brush_region(found.mask, control, label.label, round(found.score, 4)))
            continue
        best = sorted(found.parts, key=lambda part: -part.score)[: control.top_k]
        regions += [
            rectangle_region(part.box_xyxy_px, size_hw, control, label.label, round(part.score, 4)) for part in best
        ]
    return regions, scores


def _each(control: ControlPlan, job: _Job) -> bool:
    """Whether each label is answered alone: several answers of a model that was trained to say yes or no."""
    return control.multiple and job.model.tag_calibration is not None


def _choices(
    control: ControlPlan, probabilities: Mapping[str, float], *, each: bool
) -> tuple[list[Region], list[float]]:
    choice = choose_each(control, probabilities) if each else choose(control, probabilities)
    if not choice.labels:
        return [], [choice.score]
    return [choices_region(control, choice.labels, round(choice.score, 4))], [choice.score]


def _task_id(task: Any) -> int | None:
    """Label Studio's id of the task; None where it has none."""
    task_id = task.get("id") if isinstance(task, Mapping) else None
    return task_id if isinstance(task_id, int) and not isinstance(task_id, bool) else None


def _image_uri(control: ControlPlan, task: Any) -> str:
    data = task.get("data") if isinstance(task, Mapping) else None
    if not isinstance(data, Mapping):
        raise _TaskError('a task is an object with its fields under "data"')
    uri = control.image_uri(data)
    if uri is None:
        raise _TaskError(
            f'the task\'s data has no image address in "{control.image_key}", which the labelling config shows'
        )
    return uri


def _phrases(controls: Iterator[ControlPlan] | Sequence[ControlPlan]) -> list[str]:
    """Every phrase of the controls once, in order."""
    return list(dict.fromkeys(phrase for control in controls for label in control.labels for phrase in label.prompts))


def _asked_for(controls: tuple[ControlPlan, ...], context: Mapping[str, Any]) -> tuple[ControlPlan, ...]:
    """The controls cut down to the labels that the annotator's regions name; all where they name none of ours."""
    named: set[str] = set()
    regions = context.get("result")
    for region in regions if isinstance(regions, list) else []:
        value = region.get("value") if isinstance(region, Mapping) else None
        for entry in value.values() if isinstance(value, Mapping) else []:
            if isinstance(entry, list):
                named.update(item for item in entry if isinstance(item, str))
    cut: list[ControlPlan] = []
    for control in controls:
        labels = tuple(label for label in control.labels if label.label in named or label.value in named)
        if labels and control.kind != "choices":
            cut.append(replace(control, labels=labels))
    return tuple(cut) or controls


def _nothing_to_do(plan: PredictionPlan, model: ServingModel) -> str:
    if plan.controls and not model.can_segment:
        return (
            f"the model {model.name} ranks tags but gives no masks, and the labelling config has no Choices: "
            "add one, or let the operator serve a CLIPSeg checkpoint"
        )
    ignored = "; ".join(f"{item.name}: {item.reason}" for item in plan.ignored)
    return "the labelling config holds nothing to predict: add BrushLabels, RectangleLabels or Choices on an image" + (
        f" (left alone: {ignored})" if ignored else ""
    )


def _public(error: Exception) -> str:
    """The reason for a client: errors that may name paths of the server carry a version without them."""
    return str(getattr(error, "public", None) or error)


def _is_oom(error: Exception) -> bool:
    # torch.OutOfMemoryError, known by its name so that this module does not import torch.
    return type(error).__name__ == "OutOfMemoryError"
