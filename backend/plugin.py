"""The same predictor under `label-studio-ml start`, for people who host their backends that way.

    # model.py
    from backend.plugin import VLMBackend

Works with label-studio-ml 1.0.9 and 2.x. `vlm serve` is the better server; what the others cannot do:

- 1.0.9 serves one labelling config to all projects, the one of the latest `/setup`, and always answers `/setup`
  with a version name of its own. So predictions carry no name here (Label Studio then takes the one of
  `/setup`), and a task that has a prediction is not asked again after a training.
- 2.x drops `ANNOTATIONS_CREATED` and `ANNOTATIONS_DELETED`; the next other event trains with what they brought.

Training is queued as ever and done by `vlm worker`; `fit` only asks for it. label-studio-ml is imported when
`VLMBackend` is first asked for (PEP 562): importing it changes how processes start, and brings Flask with it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from backend.api.events import START_TRAINING, TRAINING_EVENTS
from backend.api.handlers import QueueUnavailableError
from backend.api.schemas import project_id_of
from backend.label_studio.config import LabelConfigError, parse_label_config
from backend.settings import load_settings

log = logging.getLogger(__name__)

_SETUP_WAIT_S = 2.0
"""Label Studio gives `/setup` three seconds."""


class Host:
    """What one process shares between all objects of the class: the model, the queue, the settings."""

    def __init__(self) -> None:
        """Read the settings and begin to load the model.

        Raises:
            SettingsError: the environment holds values that cannot be used.
        """
        from backend.model_store import ModelStore
        from backend.parts import connect_queue, feature_files, image_fetcher, load_model
        from backend.plans import ExtraParams
        from backend.predictor import Predictor
        from backend.training import TrainingLink
        from backend.versions import VersionStore

        settings = load_settings()
        self.settings = settings
        self.extra_params = ExtraParams(settings.data_dir)
        self.store = ModelStore(
            lambda: load_model(settings), VersionStore(settings.data_dir), max_loaded=settings.max_loaded_versions
        )
        self.predictor = Predictor(
            self.store,
            image_fetcher(settings),
            self.extra_params,
            fetch_threads=settings.image_fetch_threads,
            feature_cache_bytes=settings.feature_cache_bytes,
            feature_files=feature_files(settings),
        )
        self.training = TrainingLink(lambda: connect_queue(settings))

    def version(self, project_id: int, label_config: str) -> str:
        """The name of what serves the project now.

        Raises:
            ModelUnavailableError: the model is not there within two seconds.
            VersionError: the project's version cannot be read.
        """
        self.store.start()
        self.store.wait(_SETUP_WAIT_S)
        try:
            prompts = parse_label_config(label_config, self.extra_params.of(project_id)).hash_payload()
        except LabelConfigError as error:
            log.warning("project=%d unusable: %s", project_id, error)
            prompts = {"unusable": label_config}
        return self.store.version(project_id, prompts).name

    def predict(
        self, tasks: Sequence[Mapping[str, Any]], project_id: int, label_config: str, context: Mapping[str, Any] | None
    ) -> list[dict[str, Any]]:
        """One item per task; see `backend.predictor`."""
        from backend.predictor import Deadline

        self.store.start()
        answer = self.predictor.predict(
            tasks,
            project_id=project_id,
            label_config=label_config,
            deadline=Deadline(self.settings.predict_deadline_s),
            context=context or None,
        )
        return answer.items

    def fit(self, event: str, data: Mapping[str, Any]) -> None:
        """Queue a training where an event gives reason to.

        Raises:
            QueueUnavailableError: START_TRAINING while Redis is down; nothing else would remember it.
            ValueError: the event names no project.
        """
        if event not in TRAINING_EVENTS:
            return
        try:
            self.training.request_training(project_id_of(data.get("project")), reason=event)
        except QueueUnavailableError:
            if event == START_TRAINING:
                raise


_host: Host | None = None
_lock = threading.Lock()


def host() -> Host:
    """The process's own `Host`, made at the first call."""
    global _host
    with _lock:
        if _host is None:
            _host = Host()
        return _host


def _make_class() -> type:
    from label_studio_ml.model import LabelStudioMLBase

    # 2.x gives each project an object with a store of values; 1.0.9 has neither.
    per_project = hasattr(LabelStudioMLBase, "use_label_config")

    class VLMBackend(LabelStudioMLBase):  # type: ignore[misc]
        """CLIP and CLIPSeg under label-studio-ml; see `backend.plugin`."""

        TRAIN_EVENTS = tuple(sorted(TRAINING_EVENTS))

        def setup(self) -> None:
            """Called by 2.x for every request: name the version that serves the project."""
            self.set("model_version", host().version(project_id_of(self.project_id), self.label_config))

        def set_extra_params(self, extra_params: object) -> None:
            """Called by 2.x after `/setup`'s constructor: they change what is predicted, so the name too."""
            super().set_extra_params(extra_params)
            with suppress(LabelConfigError):  # remembered too: `setup` logs it, and every prediction says it
                host().extra_params.remember(project_id_of(self.project_id), extra_params)
            self.setup()

        def predict(
            self, tasks: Sequence[Mapping[str, Any]], context: Mapping[str, Any] | None = None, **_: Any
        ) -> list[dict[str, Any]]:
            """One item per task: a prediction, or `{"error"}` without `result`."""
            if not tasks:
                return []
            try:
                project = project_id_of(self.project_id if per_project else tasks[0].get("project"))
            except (ValueError, AttributeError):
                # 1.0.9 would answer with a traceback.
                return [{"error": "the first task does not say which project it is of"} for _ in tasks]
            items = host().predict(tasks, project, self.label_config, context)
            if not per_project:
                for item in items:
                    item.pop("model_version", None)
            return items

        def fit(self, *args: Any, **kwargs: Any) -> None:
            """Queue a training: `fit((), event=, data=, ...)` from 1.0.9, `fit(event, data, ...)` from 2.x."""
            event = kwargs["event"] if "event" in kwargs else args[0]
            data = kwargs["data"] if "data" in kwargs else args[1]
            # Nothing is returned: 1.0.9 takes what is for a new version, and the job has not even begun.
            host().fit(str(event), data)

    # 1.0.9 pickles the class by its name for the processes that it starts.
    VLMBackend.__module__, VLMBackend.__qualname__ = __name__, "VLMBackend"
    return VLMBackend


def flask_app(model_dir: str) -> Any:
    """label-studio-ml's app over the class.

    Args:
        model_dir: where 1.0.9 keeps what it writes; 2.x has no such place.
    """
    from label_studio_ml.api import init_app

    made = _class()
    return init_app(model_class=made) if hasattr(made, "use_label_config") else init_app(made, model_dir=model_dir)


def _class() -> type:
    made: type = globals().get("VLMBackend") or _make_class()
    globals()["VLMBackend"] = made
    return made


def __getattr__(name: str) -> Any:
    if name == "VLMBackend":
        return _class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
