"""Which version serves which project: one shared model, per project the decoder weights of its own version.

The base model is loaded by a thread of its own, so that the server answers `/health` from its first moment.
Until it is there, asking for a version raises `ModelLoadingError`, and `ModelFailedError` after a failure; a
failed load is tried again after a while (the hub may be back).

A project's version is looked up with every request, one `stat` when nothing has changed, so a version that
was published serves from the next request on. A request keeps the version that it began with.

ModelUnavailableError (vlm_core.errors.VLMError)
├── ModelLoadingError     not yet
└── ModelFailedError      the checkpoint cannot be loaded
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from backend import choices, decoding
from backend.label_studio.config import PredictionPlan
from backend.manifest import Cuts
from backend.turns import BusyTimeoutError, Reply, Request, Turns
from backend.versions import (
    DEFAULT_THRESHOLD,
    Manifest,
    StoredVersion,
    VersionStore,
    version_hash,
    version_name,
)
from vlm_core.errors import CheckpointError, VLMError

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from vlm_core.tag_head import TagHead
    from vlm_core.tags import TagCalibration
    from vlm_core.types import ImageFeatures, MaskLogits, TagScore
    from vlm_core.visual_prompts import Exemplar

log = logging.getLogger(__name__)

RETRY_LOAD_AFTER_S = 60.0


class ServingModel(Protocol):
    """What serving needs of `vlm_core.Model`."""

    @property
    def name(self) -> str:
        """Base of version names."""

    @property
    def fingerprint(self) -> str:
        """Sha256, hex, of everything that decides its answers."""

    @property
    def can_segment(self) -> bool:
        """Whether it gives masks."""

    @property
    def input_px(self) -> int:
        """The longest side of what it sees of an image."""

    @property
    def mask_input_hw(self) -> tuple[int, int]:
        """What it sees of an image that it gives masks for, px."""

    @property
    def patch_cells(self) -> int:
        """How many cells of its masks' grid a patch of its input is wide."""

    @property
    def features_id(self) -> str:
        """Names what its encoders make of images; a part of a file name."""

    @property
    def encode_batch(self) -> int:
        """Images that it encodes at once."""

    @property
    def phrase_counts(self) -> tuple[int, int]:
        """Phrases that were known when they were asked for, and phrases that had to be encoded."""

    @property
    def one_view(self) -> bool:
        """Whether tags see an image as masks do, so that one pass gives both."""

    def encode_image(
        self, images: Image.Image | Sequence[Image.Image], *, masks: bool = True, tags: bool = False
    ) -> ImageFeatures:
        """The expensive half."""

    def encode_text(self, prompts: Sequence[str]) -> torch.Tensor:
        """Conditions (P, E)."""

    def encode_exemplars(self, exemplars: Sequence[Exemplar]) -> torch.Tensor:
        """Conditions (N, E) of what pictures show."""

    def decode_batch(self, features: ImageFeatures, conditions: Sequence[torch.Tensor]) -> list[MaskLogits]:
        """Logits on the model's own grid, for each image with its own conditions."""

    @property
    def tag_calibration(self) -> TagCalibration | None:
        """What makes a tag's probability its own; None where probabilities only compare tags."""

    def rank_features(self, features: ImageFeatures, tags: Sequence[str], *, multiple: bool = False) -> list[TagScore]:
        """Tags, best first; with `multiple`, each with a probability of its own."""

    @property
    def tag_heads(self) -> Mapping[str, TagHead]:
        """Answers that a version has learned, by question."""

    def classify_features(
        self, features: ImageFeatures, question: str, labels: Mapping[str, Sequence[str]]
    ) -> list[TagScore]:
        """Labels of a question that was learned, best first."""

    def with_learned(self, state: Mapping[str, torch.Tensor]) -> ServingModel:
        """The same encoders with what a version has learned: decoder weights, conditions of phrases, tag heads."""


class ModelUnavailableError(VLMError):
    """No model can answer now.

    Attributes:
        public: the reason without paths, fit for a client.
    """

    def __init__(self, public: str) -> None:
        super().__init__(public)
        self.public = public


class ModelLoadingError(ModelUnavailableError):
    """The model is still being loaded."""


class ModelFailedError(ModelUnavailableError):
    """The checkpoint cannot be loaded; the server's log says why."""


class BusyError(ModelUnavailableError):
    """The model did not become free in time."""


@dataclass(frozen=True)
class ServedVersion:
    """What answers a project.

    Attributes:
        name: as Label Studio sees it, in `/setup` and in every prediction.
        number: of the project's version; 0 is the base model.
        manifest: of the project's version; None for the base model.
    """

    name: str
    number: int
    manifest: Manifest | None

    @property
    def cuts(self) -> Cuts:
        """What of the answers is marked."""
        return Cuts() if self.manifest is None else self.manifest


@dataclass(frozen=True)
class StoreState:
    """Where loading stands.

    Attributes:
        status: of the base model.
        reason: for a client; empty when ready.
        model: its name; empty until ready.
    """

    status: Literal["loading", "ready", "failed"]
    reason: str
    model: str


def served_version(
    base_name: str, base_fingerprint: str, project_id: int, prompts: Mapping[str, Any], stored: StoredVersion | None
) -> ServedVersion:
    """Name what a project gets from a base model and, where there is one, its own version.

    Args:
        base_name: of the base model.
        base_fingerprint: of the base model.
        project_id: Label Studio's id.
        prompts: `PredictionPlan.hash_payload()`.
        stored: the project's version; None for the base model.
    """
    manifest = None if stored is None else stored.manifest
    cuts = Cuts() if manifest is None else manifest
    weights = base_fingerprint if stored is None else f"{base_fingerprint}+{stored.weights_fingerprint}"
    rules = {"masks": decoding.RULES, "choices": choices.RULES, "default_threshold": DEFAULT_THRESHOLD}
    hash8 = version_hash(
        weights=weights,
        prompts=prompts,
        thresholds=cuts.thresholds,
        # Left out where there are none, so that names of older versions stay.
        decoding={**rules, "temperatures": cuts.temperatures}
        | ({"part_scores": cuts.part_scores} if cuts.part_scores else {}),
    )
    number = 0 if stored is None else stored.number
    return ServedVersion(version_name(base_name, project_id, number, hash8), number, manifest)


class ModelStore:
    """The base model and the decoders of the projects. Safe to share between threads."""

    def __init__(
        self,
        load: Callable[[], ServingModel],
        versions: VersionStore,
        *,
        max_loaded: int = 16,
        retry_after_s: float = RETRY_LOAD_AFTER_S,
    ) -> None:
        """Nothing is loaded until `start`.

        Args:
            load: gives the base model; called in a thread of its own, again after a failure.
            versions: of all projects.
            max_loaded: project decoders kept in memory.
            retry_after_s: between a failed load and the next.
        """
        self._load = load
        self._versions = versions
        self._max_loaded = max_loaded
        self._retry_after_s = retry_after_s
        self._model: ServingModel | None = None
        self._failure = ""
        self._settled = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._decoders: OrderedDict[str, ServingModel] = OrderedDict()
        self._decoders_lock = threading.Lock()
        self._turns = Turns()
        self._foreign: set[tuple[int, int]] = set()

    def start(self) -> None:
        """Begin to load; returns at once. A second call does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._load_until_done, name="load-model", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop trying to load. A load that is under way is left to end with the process."""
        self._closed.set()

    @property
    def state(self) -> StoreState:
        """Where loading stands."""
        if self._model is not None:
            return StoreState("ready", "", self._model.name)
        if self._failure:
            return StoreState("failed", self._failure, "")
        return StoreState("loading", "the model is still being loaded, ask again in a moment", "")

    def wait(self, timeout_s: float) -> bool:
        """Wait until loading has succeeded or failed; whether it has."""
        return self._settled.wait(max(0.0, timeout_s))

    def model(self) -> ServingModel:
        """The base model.

        Raises:
            ModelLoadingError: not yet.
            ModelFailedError: it cannot be loaded.
        """
        if self._model is not None:
            return self._model
        state = self.state
        raise (ModelFailedError if state.status == "failed" else ModelLoadingError)(state.reason)

    def phrase_counts(self) -> Mapping[str, int]:
        """What the model's cache of phrases was asked for: "hit" and "miss"; nothing until it is loaded."""
        if self._model is None:
            return {}
        hits, misses = self._model.phrase_counts
        return {"hit": hits, "miss": misses}

    def version(self, project_id: int, prompts: Mapping[str, Any]) -> ServedVersion:
        """What serves the project now.

        Args:
            project_id: Label Studio's id.
            prompts: `PredictionPlan.hash_payload()`, or whatever stands for a config that cannot be used.

        Raises:
            ModelUnavailableError: no model yet.
            VersionError: the project's version cannot be read.
        """
        base = self.model()
        stored = self._current(base, project_id)
        return served_version(base.name, base.fingerprint, project_id, prompts, stored)

    def serving(self, project_id: int, plan: PredictionPlan) -> tuple[ServedVersion, ServingModel]:
        """What serves the project now, with the model that answers for it.

        Raises:
            ModelUnavailableError: no model yet.
            VersionError: the project's version cannot be read.
            VLMError: its weights do not fit the base model.
        """
        base = self.model()
        stored = self._current(base, project_id)
        version = served_version(base.name, base.fingerprint, project_id, plan.hash_payload(), stored)
        return version, base if stored is None else self._decoder(base, stored)

    @contextmanager
    def computing(self, timeout_s: float) -> Iterator[None]:
        """Have the accelerator to oneself.

        Raises:
            BusyError: it did not become free in time.
        """
        try:
            with self._turns.alone(timeout_s):
                yield
        except BusyTimeoutError:
            raise BusyError(_BUSY) from None

    def compute(
        self,
        group: Hashable,
        request: Request,
        answer: Callable[[Sequence[Request]], Sequence[Reply]],
        timeout_s: float,
        *,
        most: int,
    ) -> Reply:
        """Let the accelerator answer a request together with others of its group; see `backend.turns.Turns.run`.

        Raises:
            BusyError: it did not become free in time.
            Exception: what `answer` raises for this request.
        """
        try:
            return self._turns.run(group, request, answer, timeout_s, most=most)
        except BusyTimeoutError:
            raise BusyError(_BUSY) from None

    def _current(self, base: ServingModel, project_id: int) -> StoredVersion | None:
        """The project's version, unless it was trained on another base model than the one that is loaded."""
        stored = self._versions.current(project_id)
        if stored is None or stored.manifest.base.fingerprint == base.fingerprint:
            return stored
        if (project_id, stored.number) not in self._foreign:  # once, not with every request
            self._foreign.add((project_id, stored.number))
            log.warning(
                "project=%d version=%d was trained on %s, %s is loaded: the base model serves the project "
                "until it is trained again",
                project_id,
                stored.number,
                stored.manifest.base.name,
                base.name,
            )
        return None

    def _decoder(self, base: ServingModel, stored: StoredVersion) -> ServingModel:
        key = stored.weights_fingerprint
        with self._decoders_lock:
            if key in self._decoders:
                self._decoders.move_to_end(key)
                return self._decoders[key]
            # Loading under the lock: some milliseconds, and never twice for two requests that come together.
            model = base.with_learned(stored.load_weights())
            self._decoders[key] = model
            while len(self._decoders) > self._max_loaded:
                self._decoders.popitem(last=False)
        log.info("project=%d version=%d loaded", stored.project_id, stored.number)
        return model

    def _load_until_done(self) -> None:
        while not self._closed.is_set():
            started = time.monotonic()
            try:
                model = self._load()
            except Exception as error:  # whatever it is, the server must be able to say so
                if isinstance(error, VLMError):
                    log.error("the model cannot be loaded: %s", error)
                else:
                    log.exception("the model cannot be loaded")
                self._failure = f"the model cannot be loaded ({type(error).__name__}): {_remedy(error)}"
                self._settled.set()
                self._closed.wait(self._retry_after_s)
                continue
            self._model = model
            self._settled.set()
            log.info("model %s ready after %.1f s", model.name, time.monotonic() - started)
            return


_BUSY = "the model was busy with other requests until the time was up"


def _remedy(error: Exception) -> str:
    """What to do about a failed load, without paths."""
    if isinstance(error, CheckpointError):
        return (
            "set VLM_CHECKPOINT to a checkpoint's directory or hub id, `vlm models pull` fetches one where there is a "
            "network; the server's log says what is wrong"
        )
    return "the server's log says why"
