"""One job's work on a project's tasks, shard after shard: claim, predict, write.

While the model works, the images of the next tasks are fetched and decoded, and the last predictions are imported.

A shard is predicted with whatever version serves the project when its turn comes. Where a new version is published in
between, the tasks that are done keep their predictions of the former one, and the others get the new one's.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import redis
from redis.exceptions import LockError

from backend.label_studio.client import LabelStudioClient
from backend.label_studio.config import LabelConfigError
from backend.label_studio.task_filter import among, without_version
from backend.model_store import ModelStore
from backend.parts import feature_files, image_fetcher, load_model
from backend.plans import ExtraParams, PlanCache
from backend.predictor import Deadline, Predictor
from backend.prelabel_ledger import Ledger
from backend.prelabel_queue import SHARD, PrelabelQueue
from backend.settings import Settings
from backend.versions import VersionStore
from training_jobs.ahead import ahead
from training_jobs.errors import CannotPrelabelError
from training_jobs.prelabel_writer import Item, PredictionWriter

log = logging.getLogger(__name__)

STINT_S = 300.0
"""A job that lasts longer gives way to the others that wait; loading the model is a small part of it."""

_LOAD_S = 1800.0
_CHUNK = 32
"""Tasks in one call of the predictor."""
_CALLS = 2
"""Of the predictor at the same time; twice as many may have been begun before the oldest one's are imported."""
_CHUNK_S = 600.0
_CONFIG_AGE_S = 30.0
"""A labelling config that was changed counts from then on."""
_IMPORT_S = 60
"""After which the turn of a job that was killed during its import ends."""

Task = Mapping[str, Any]


class Serving:
    """The model with everything around it, as the server has it; a context manager."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is loaded yet."""
        self._store = ModelStore(
            lambda: load_model(settings), VersionStore(settings.data_dir), max_loaded=settings.max_loaded_versions
        )
        self._plans, self._extra_params = PlanCache(), ExtraParams(settings.data_dir)
        self.predictor = Predictor(
            self._store,
            image_fetcher(settings),
            self._extra_params,
            plans=self._plans,
            fetch_threads=settings.image_fetch_threads,
            feature_cache_bytes=settings.feature_cache_bytes,
            feature_files=feature_files(settings),
        )

    def __enter__(self) -> Serving:
        """Load the model.

        Raises:
            ModelUnavailableError: it cannot be loaded.
        """
        self._store.start()
        self._store.wait(_LOAD_S)
        self._store.model()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let it go."""
        self.predictor.close()
        self._store.close()

    def version(self, project_id: int, label_config: str) -> str:
        """The name of the version that serves a project now.

        Raises:
            LabelConfigError: the config cannot be used.
            VLMError: the version cannot be read.
        """
        config = self._plans.get(label_config, self._extra_params.of(project_id))
        return self._store.version(project_id, config.plan.hash_payload()).name


def run_stint(
    project_id: int,
    *,
    serving: Serving,
    client: LabelStudioClient,
    queue: PrelabelQueue,
    owner: str,
    give_way: Callable[[], bool],
    stint_s: float = STINT_S,
) -> None:
    """Work until nothing can be done now, or the time is up.

    What was claimed and not settled must be released by the caller.

    Args:
        project_id: Label Studio's id.
        serving: with its model loaded.
        client: Label Studio.
        queue: of pre-labelling.
        owner: of the claims, `<job id>:<random>`.
        give_way: asked between shards: True ends the stint.
        stint_s: so long at most.

    Raises:
        CannotPrelabelError: the labelling config does not allow it.
        LabelStudioError: Label Studio is away or refuses.
        VLMError: the project's version cannot be used.
    """
    stint = _Stint(project_id, serving, client, queue, owner, give_way, time.monotonic() + stint_s)
    try:
        stint.work()
    except LabelConfigError as error:
        raise CannotPrelabelError(str(error)) from error


class _TimedApi:
    """Label Studio, and how long it was waited for."""

    def __init__(self, client: LabelStudioClient) -> None:
        self._client = client
        self.waited_s = 0.0

    def matching_tasks(
        self, project_id: int, conditions: Sequence[Task], *, fields: Sequence[str] = ("id",)
    ) -> list[dict[str, Any]]:
        with self._waiting():
            return list(self._client.matching_tasks(project_id, conditions, fields=fields))

    def import_predictions(self, project_id: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        with self._waiting():
            return self._client.import_predictions(project_id, predictions)

    def task_predictions(self, task_id: int) -> list[dict[str, Any]]:
        with self._waiting():
            return self._client.task_predictions(task_id)

    def delete_prediction(self, prediction_id: int) -> None:
        with self._waiting():
            self._client.delete_prediction(prediction_id)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.waited_s += time.monotonic() - began


class _Stint:
    def __init__(
        self,
        project_id: int,
        serving: Serving,
        client: LabelStudioClient,
        queue: PrelabelQueue,
        owner: str,
        give_way: Callable[[], bool],
        ends_at: float,
    ) -> None:
        self._project_id = project_id
        self._serving = serving
        self._client = client
        self._api = _TimedApi(client)
        self._ledger = queue.ledger(project_id)
        self._owner = owner
        self._give_way = give_way
        self._ends_at = ends_at
        self._config = ""
        self._config_ends_at = 0.0
        self._writer = PredictionWriter(
            project_id, self._api, self._ledger, owner, one_at_a_time=lambda: _import_turn(queue.connection, project_id)
        )

    def work(self) -> None:
        """Predict and write, until nothing can be done now or the time is up."""
        try:
            calls = (partial(self._predict, tasks) for tasks in self._chunks())
            with _renewed(self._ledger, self._owner), contextlib.closing(ahead(calls, _CALLS)) as answered:
                for version, items in answered:
                    self._writer.add(version, items)
                self._writer.flush()
        finally:
            self._ledger.note_waited(self._api.waited_s)

    def _chunks(self) -> Iterator[list[Task]]:
        while time.monotonic() < self._ends_at and not self._give_way():
            claimed = self._ledger.take(self._owner, SHARD)
            if not claimed:
                return
            version = self._version()
            lacking = self._api.matching_tasks(
                self._project_id, [among(claimed), without_version(version)], fields=("id", "data")
            )
            tasks = {int(task["id"]): task for task in lacking}
            settled = [task_id for task_id in claimed if task_id not in tasks]
            if settled:
                self._ledger.finish(self._owner, version, settled, "present")
            following: list[Task] = list(tasks.values())
            while following:
                yield following[:_CHUNK]
                following = following[_CHUNK:]

    def _predict(self, tasks: list[Task]) -> tuple[str, dict[int, Item]]:
        answer = self._serving.predictor.predict(
            tasks, project_id=self._project_id, label_config=self._config, deadline=Deadline(_CHUNK_S)
        )
        if not answer.model_version:
            raise CannotPrelabelError(str(answer.items[0].get("error")))
        return answer.model_version, {int(task["id"]): item for task, item in zip(tasks, answer.items, strict=True)}

    def _version(self) -> str:
        """Of what serves the project now, by its present labelling config."""
        if time.monotonic() > self._config_ends_at:
            self._config = str(self._client.project(self._project_id)["label_config"])
            self._config_ends_at = time.monotonic() + _CONFIG_AGE_S
        return self._serving.version(self._project_id, self._config)


@contextlib.contextmanager
def _renewed(ledger: Ledger, owner: str) -> Iterator[None]:
    """Claims last as long as this lasts."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(ledger.patience.lease_s / 3):
            try:
                ledger.renew(owner)
            except redis.RedisError as error:  # it may be back the next time; writing asks for the claim anyway
                log.warning("claims could not be renewed: %s", type(error).__name__)

    thread = threading.Thread(target=renew, name="claims", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _import_turn(connection: redis.Redis, project_id: int) -> Iterator[None]:
    """One import into a project at a time: for Label Studio's sake, so that a turn that does not come is no reason to
    wait for ever."""
    lock = connection.lock(f"vlm:prelabel:{project_id}:import", timeout=_IMPORT_S, blocking_timeout=_IMPORT_S)
    held = lock.acquire()
    try:
        yield
    finally:
        if held:
            with contextlib.suppress(LockError):  # it lasted longer than the turn
                lock.release()
