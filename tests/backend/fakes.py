"""Fakes with behaviour: a model that knows colours, images from memory, a queue that remembers."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import torch
from PIL import Image

from backend.api.handlers import QueueUnavailableError
from backend.label_studio.images import ImageUnavailableError
from backend.prelabel_queue import PrelabelProgress
from backend.queue import Cancelled, LiveJob, QueueCounts, RequestOutcome
from vlm_core.errors import CapabilityError, CheckpointMismatchError
from vlm_core.tag_head import TagHead
from vlm_core.tags import TagCalibration
from vlm_core.types import ImageFeatures, MaskLogits, TagScore
from vlm_core.visual_prompts import Exemplar

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}
GRID = 32


def _rgb(phrase: str) -> tuple[int, int, int]:
    """The last word decides; a phrase without a colour is white."""
    return COLOURS.get(phrase.split()[-1], (255, 255, 255))


@dataclass
class ColourModel:
    """Marks what has the colour that a phrase names. Logit +6 on it, down to -6 elsewhere.

    `gain` multiplies the logits: it stands for a decoder's weights.
    """

    name: str = "colours"
    fingerprint: str = hashlib.sha256(b"colours").hexdigest()
    can_segment: bool = True
    gain: float = 1.0
    encoded: list[str] = field(default_factory=list)
    on_encode: Callable[[], None] = lambda: None
    tag_calibration: TagCalibration | None = None

    one_view: bool = False
    encode_batch: int = 4

    @property
    def input_px(self) -> int:
        return GRID

    @property
    def mask_input_hw(self) -> tuple[int, int]:
        return GRID, GRID

    patch_cells: int = 4

    @property
    def phrase_counts(self) -> tuple[int, int]:
        return (3, 4)

    @property
    def features_id(self) -> str:
        return self.fingerprint[:16]

    def encode_image(
        self, images: Image.Image | Sequence[Image.Image], *, masks: bool = True, tags: bool = False
    ) -> ImageFeatures:
        parts = []
        for image in [images] if isinstance(images, Image.Image) else images:
            self.on_encode()
            self.encoded.append("both" if masks and tags else "masks" if masks else "tags")
            small = np.asarray(image.resize((GRID, GRID), Image.Resampling.NEAREST), dtype=np.float32)
            taps = (torch.from_numpy(small.reshape(1, GRID * GRID, 3)),) if masks else ()
            embeds = torch.from_numpy(small.reshape(-1, 3).mean(0, keepdims=True)) if tags else None
            parts.append(ImageFeatures(taps, (GRID, GRID) if masks else (0, 0), embeds))
        return ImageFeatures.join(parts)

    def encode_text(self, prompts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([_rgb(prompt) for prompt in prompts], dtype=torch.float32)

    def encode_exemplars(self, exemplars: Sequence[Exemplar]) -> torch.Tensor:
        """The mean colour of each region."""
        rows = [np.asarray(image, dtype=np.float32)[region].mean(0) for image, region in exemplars]
        return torch.from_numpy(np.stack(rows))

    def decode_batch(self, features: ImageFeatures, conditions: Sequence[torch.Tensor]) -> list[MaskLogits]:
        if not self.can_segment:
            raise CapabilityError("no decoder")
        answers = []
        for pixels, some in zip(features.taps[0], conditions, strict=True):
            distance = torch.cdist(some, pixels).reshape(-1, GRID, GRID)
            answers.append(MaskLogits((6 - distance / 10).clamp(min=-6) * self.gain, ("",) * len(some)))
        return answers

    def rank_features(self, features: ImageFeatures, tags: Sequence[str], *, multiple: bool = False) -> list[TagScore]:
        assert features.image_embeds is not None
        similarity = -torch.cdist(features.image_embeds, self.encode_text(tags))[0] / 100
        probability = similarity.softmax(0)
        if multiple:
            assert self.tag_calibration is not None
            probability = self.tag_calibration.probabilities(similarity)
        scores = [TagScore(t, float(p), float(s)) for t, p, s in zip(tags, probability, similarity, strict=True)]
        return sorted(scores, key=lambda score: -score.probability)

    @property
    def tag_heads(self) -> Mapping[str, TagHead]:
        return {}

    def classify_features(
        self, features: ImageFeatures, question: str, labels: Mapping[str, Sequence[str]]
    ) -> list[TagScore]:
        raise AssertionError("it has learned no answer")

    def with_learned(self, state: Mapping[str, torch.Tensor]) -> ColourModel:
        if set(state) != {"gain"}:
            raise CheckpointMismatchError(f"these weights do not fit: {sorted(state)}")
        return ColourModel(
            self.name,
            self.fingerprint,
            self.can_segment,
            float(state["gain"][0]),
            self.encoded,
            self.on_encode,
            self.tag_calibration,
        )


@dataclass(frozen=True)
class MemoryImage:
    """What `MemoryImages` gives."""

    image: Image.Image
    sha256: str

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.image.height, self.image.width


class MemoryImages:
    """Images by address; an unknown address is an `ImageUnavailableError`, a gate holds an address back."""

    def __init__(self, images: Mapping[str, Image.Image], gates: Mapping[str, threading.Event] | None = None) -> None:
        self.images = dict(images)
        self.gates = dict(gates or {})
        self.fetched: list[str] = []
        self.least_px: dict[str, int | None] = {}

    def fetch(
        self, uri: str, *, task_id: int | None = None, project_id: int | None = None, at_least_px: int | None = None
    ) -> MemoryImage:
        self.fetched.append(uri)
        self.least_px[uri] = at_least_px
        if uri in self.gates:
            self.gates[uri].wait(30)
        if uri not in self.images:
            raise ImageUnavailableError(f"{uri}: there is no such image")
        image = self.images[uri]
        return MemoryImage(image, hashlib.sha256(image.tobytes() + str(image.size).encode()).hexdigest())


class MemoryTraining:
    """A queue with the outcomes of the real one; `down` makes it fail as when Redis is gone."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, str]] = []
        self.down = False
        self.gate: threading.Event | None = None
        self.waiting = 0

    def request_training(self, project_id: int, *, reason: str) -> RequestOutcome:
        if self.gate is not None:
            self.waiting += 1
            self.gate.wait(30)
        if self.down:
            raise QueueUnavailableError
        first = all(project_id != known for known, _ in self.requests)
        self.requests.append((project_id, reason))
        return RequestOutcome(f"train-p{project_id}-1", "queued" if first else "already queued")

    def status(self, project_id: int) -> LiveJob | None:
        self.ping()
        if all(known != project_id for known, _ in self.requests):
            return None
        now = datetime.now(UTC)
        return LiveJob(project_id, f"train-p{project_id}-1", "queued", "", now, None, {}, "", follow_up=False)

    def cancel(self, project_id: int) -> Cancelled:
        self.ping()
        before = len(self.requests)
        self.requests = [item for item in self.requests if item[0] != project_id]
        return "removed" if len(self.requests) < before else "nothing"

    def jobs(self) -> list[LiveJob]:
        self.ping()
        return []

    def ping(self) -> None:
        if self.down:
            raise QueueUnavailableError

    def counts(self) -> QueueCounts:
        self.ping()
        return QueueCounts(queued=len(self.requests), running=0, retrying=0, failed=0, workers=1)


class MemoryPrelabelling:
    """What is being pre-labelled: nothing at first, and a worker that would."""

    def __init__(self) -> None:
        self.down = False
        self.live: list[PrelabelProgress] = []

    def counts(self) -> QueueCounts:
        if self.down:
            raise QueueUnavailableError
        return QueueCounts(queued=0, running=0, retrying=0, failed=0, workers=1)

    def jobs(self) -> list[PrelabelProgress]:
        if self.down:
            raise QueueUnavailableError
        return self.live


def squares(size_hw: tuple[int, int] = (60, 120)) -> Image.Image:
    """White, with a red block in the left third and a green one at the right edge, rows 20 to 40."""
    image = Image.new("RGB", (size_hw[1], size_hw[0]), (255, 255, 255))
    image.paste(COLOURS["red"], (15, 20, 45, 40))
    image.paste(COLOURS["green"], (90, 20, 120, 40))
    return image
