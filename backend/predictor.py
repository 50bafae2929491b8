"""Tasks -> predictions, as many and in the same order, until a deadline.

An item of the answer is a prediction, `{"model_version", "score", "result"}`, where an empty `result` means that
nothing was found; or `{"error"}` without `result`, and then Label Studio stores nothing and may ask again. One
bad task costs itself only. What an annotator asks while working on a task (`backend.answers.interactive`) is stored by
nobody; its item has a `message` for them too.

Images are fetched by several threads, a few ahead of the model, so that a batch of any size holds few images in
memory. The model sees one image at a time and hands itself over between images, so that a task that an
annotator opens does not wait for a batch.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from backend.answers.image import answer_image
from backend.answers.interactive import answer_question, choose_target, told
from backend.answers.request import ControlAnswer, Deadline, PredictionRequest, TaskError
from backend.answers.task import image_uri, task_data, task_id, with_own_phrases
from backend.answers.view import ImageView, SizedImage
from backend.cache_counts import CacheCounts
from backend.decoding import mean_score
from backend.disk_cache import DiskCache
from backend.failures import Reason, is_out_of_memory, reason_of
from backend.features import FeatureCache
from backend.inference import Inference
from backend.label_studio.config import ControlPlan, LabelConfigError, PredictionPlan
from backend.label_studio.images import ImageError
from backend.label_studio.interaction import InteractionError, Like, read_context
from backend.label_studio.interactive_config import MessageBox
from backend.metrics import Metrics, Times
from backend.model_store import ModelStore, ModelUnavailableError, ServingModel
from backend.plans import ExtraParams, PlanCache
from backend.versions import VersionError
from vlm_core.errors import VLMError

__all__ = ["Answer", "Deadline", "ImageSource", "Predictor", "servable_controls"]

log = logging.getLogger(__name__)

Item = dict[str, Any]

_OVERSAMPLING = 2
"""A large JPEG is decoded at no less than so many times what the model sees: the grey levels that it then sees differ
by half a level of 255 on average, and the file takes a third of the time."""


_GRACE_S = 0.2


class ImageSource(Protocol):
    """Where images come from; `backend.label_studio.images.ImageFetcher`."""

    def fetch(
        self, uri: str, *, task_id: int | None = None, project_id: int | None = None, at_least_px: int | None = None
    ) -> SizedImage:
        """Get one image, or raise `ImageError` with a reason for the project owner."""


@dataclass(frozen=True)
class Answer:
    """What `/predict` says.

    Attributes:
        items: one per task, in order.
        model_version: that all predictions carry; "" when none could be made.
        times: where the time went, for the log.
    """

    items: list[Item]
    model_version: str
    times: Mapping[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Tasks without a prediction."""
        return sum("error" in item for item in self.items)


@dataclass(frozen=True)
class _Done:
    """An item of the answer, and what it counts as where it is a failure."""

    item: Item
    failure: Reason | None = None


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
        metrics: Metrics | None = None,
        computing: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
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
            metrics: where it is counted and timed; default where nobody looks.
            computing: entered by each task's thread while its answer is computed; see `backend.right_of_way`.
        """
        self._store = store
        self._images = images
        self._extra_params = extra_params
        self._plans = plans or PlanCache()
        self._window = fetch_threads
        self._pool = ThreadPoolExecutor(fetch_threads, thread_name_prefix="task")
        self._metrics = metrics or Metrics()
        self._computing = computing
        self._inference = Inference(store, FeatureCache(feature_cache_bytes, feature_files), self._metrics)

    @property
    def feature_counts(self) -> CacheCounts:
        """What the cache of features was asked for."""
        return self._inference.cache_counts

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
        context: object = None,
    ) -> Answer:
        """Answer tasks of one project.

        Args:
            tasks: each with `id` and `data`, as Label Studio sends them; what is not is that task's error.
            project_id: Label Studio's id.
            label_config: the XML of the project.
            deadline: tasks that are not done by then get an error.
            context: of an interactive request: what the annotator has just drawn or typed; see
                `backend.label_studio.interaction`. None: predictions are asked for.

        Returns:
            One item per task. Never raises for what tasks, configs, images or versions hold.
        """
        if not tasks:
            return Answer([], "")
        try:
            request = self._prepare(project_id, label_config, deadline, context)
        except (LabelConfigError, ModelUnavailableError, VersionError, TaskError, VLMError) as error:
            reason = _public(error)
            log.warning("project=%d tasks=%d no prediction: %s", project_id, len(tasks), error)
            self._metrics.failed(reason_of(error), len(tasks))
            box = None if context is None else self._message_box(label_config, project_id)
            return Answer([told({"error": reason}, box) for _ in tasks], "")
        done = [_Done({"error": deadline.late}, "late") for _ in tasks]
        for index, one in self._answered(tasks, request):
            done[index] = one
        for one in done:
            if one.failure is None:
                self._metrics.answered(found=bool(one.item["result"]))
            else:
                self._metrics.failed(one.failure)
        items = [one.item for one in done]
        if context is not None:
            items = [told(item, request.config.interactive.messages) for item in items]
        return Answer(items, request.version.name, request.times.fields())

    def _prepare(self, project_id: int, label_config: str, deadline: Deadline, context: object) -> PredictionRequest:
        self._store.wait(deadline.remaining())
        self._store.model()
        config = self._plans.get(label_config, self._extra_params.of(project_id))
        version, model = self._store.serving(project_id, config.plan)
        controls = servable_controls(config.plan, model)
        if not controls:
            raise TaskError(_nothing_to_do(config.plan, model), "config")
        return PredictionRequest(config, controls, version, model, project_id, deadline, Times(self._metrics), context)

    def _message_box(self, label_config: str, project_id: int) -> MessageBox | None:
        """Where the annotator is told that nothing can be answered; None where that cannot be known either."""
        try:
            return self._plans.get(label_config, self._extra_params.of(project_id)).interactive.messages
        except LabelConfigError:
            return None

    def _answered(self, tasks: Sequence[Any], request: PredictionRequest) -> Iterator[tuple[int, _Done]]:
        """Items as they are done, until the deadline.

        A few tasks are worked on at the same time: images are fetched and decoded, and masks drawn, while the model
        works for others, and what waits for the model is answered in one batch.
        """
        waiting: dict[Future[_Done], int] = {}
        following = iter(range(len(tasks)))
        try:
            while True:
                while len(waiting) < self._window and (index := next(following, None)) is not None:
                    waiting[self._pool.submit(self._item, tasks[index], request)] = index
                if not waiting:
                    return
                done, _ = wait(waiting, timeout=request.deadline.remaining(), return_when=FIRST_COMPLETED)
                late = not request.deadline.remaining()
                if late:  # those that wait for the model give up at this moment, and say why
                    done, _ = wait(waiting, timeout=_GRACE_S)
                for future in done:
                    yield waiting.pop(future), future.result()
                if late:
                    return
        finally:
            for future in waiting:
                future.cancel()

    def _item(self, task: Any, request: PredictionRequest) -> _Done:
        """One task's prediction, or its error."""
        try:
            if not request.deadline.remaining():  # it waited behind others; nobody would see the result
                raise TaskError("the time was up before the image was fetched: ask again", "late")
            if request.context is not None:
                return _Done(self._interactive_item(task, request))
            answers = self._answers(task, request)
            item: Item = {
                "model_version": request.version.name,
                "score": mean_score([score for answer in answers for score in answer.scores]),
                "result": [region for answer in answers for region in answer.regions],
            }
            refused = request.config.check.errors(item)
            if refused:
                problems = "; ".join(refused)
                raise TaskError(f"the prediction does not fit the labelling config: {problems}", "refused")
        except (TaskError, InteractionError, ImageError, VLMError) as error:
            log.warning("project=%d task=%s no prediction: %s", request.project_id, task_id(task), error)
            return _Done({"error": _public(error)}, reason_of(error))
        except Exception as error:
            # Whatever went wrong, the neighbours are still answered.
            reference = uuid.uuid4().hex[:8]
            log.exception("project=%d task=%s reference=%s", request.project_id, task_id(task), reference)
            kind = "out of memory" if is_out_of_memory(error) else "an unexpected error"
            text = f"{kind} on the server; its log has the details under {reference}"
            return _Done({"error": text}, reason_of(error))
        return _Done(item)

    def _interactive_item(self, task: Any, request: PredictionRequest) -> Item:
        """What an annotator gets who works on a task."""
        question = read_context(request.context, request.config.interactive, task)
        item: Item = {"model_version": request.version.name, "score": 0.0, "result": []}
        if question is None:
            return item
        target = choose_target(question, request.controls)
        with request.times.timed("fetch"):
            image = self._images.fetch(
                image_uri(target.control, task_data(task)),
                task_id=task_id(task),
                project_id=request.project_id,
                at_least_px=None if isinstance(question, Like) else _needed_px([target.control], request.model),
            )
        view = ImageView(self._inference, image, request, masks=True, tags=False)
        with self._computing():
            reply = answer_question(question, target, view, task)
        return item | {"score": reply.score, "result": reply.regions, "message": reply.message}

    def _answers(self, task: Any, request: PredictionRequest) -> list[ControlAnswer]:
        """What each control says of one task, image by image."""
        data = task_data(task)
        looking: dict[str, list[ControlPlan]] = {}
        for control in request.controls:
            looking.setdefault(image_uri(control, data), []).append(with_own_phrases(control, data))
        with request.times.timed("fetch"):
            fetched = {
                uri: self._images.fetch(
                    uri,
                    task_id=task_id(task),
                    project_id=request.project_id,
                    at_least_px=_needed_px(controls, request.model),
                )
                for uri, controls in looking.items()
            }
        with self._computing():
            return [
                answer
                for uri, controls in looking.items()
                for answer in answer_image(self._inference, fetched[uri], controls, data, request)
            ]


def servable_controls(plan: PredictionPlan, model: ServingModel) -> tuple[ControlPlan, ...]:
    """The controls that this model can answer: one that only ranks tags answers those for the whole image only."""
    return tuple(control for control in plan.controls if model.can_segment or not _needs_masks(control))


def _needs_masks(control: ControlPlan) -> bool:
    return control.shape is not None or control.per_region or control.text == "phrases"


def _needed_px(controls: Sequence[ControlPlan], model: ServingModel) -> int | None:
    """The size at which an image is decoded; None: its own, where the model will look at parts of it."""
    if any(control.tile is not None or control.per_region for control in controls):
        return None
    return _OVERSAMPLING * model.input_px


def _nothing_to_do(plan: PredictionPlan, model: ServingModel) -> str:
    if plan.controls and not model.can_segment:
        return (
            f"the model {model.name} ranks tags but gives no masks, and the labelling config has no Choices for the "
            "whole image: add one, or let the operator serve a CLIPSeg checkpoint"
        )
    ignored = "; ".join(f"{item.name}: {item.reason}" for item in plan.ignored)
    return "the labelling config holds nothing to predict: add labels to draw or choices on an image" + (
        f" (left alone: {ignored})" if ignored else ""
    )


def _public(error: Exception) -> str:
    """The reason for a client: errors that may name paths of the server carry a version without them."""
    return str(getattr(error, "public", None) or error)
