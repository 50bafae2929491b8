"""What is written beside a version's weights: where it comes from, how to decode with it, what it was tested on.

The schema is versioned. A reader that meets a newer schema says so instead of guessing; a field is never given
another meaning under the same schema version.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Literal[1] = 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BaseCheckpoint(_Part):
    """The checkpoint whose frozen encoders the version needs."""

    name: str = Field(min_length=1, description="As in version names: 'demo', 'clipseg-rd64-refined'.")
    fingerprint: Sha256 = Field(description="Of weights and configuration; must match what is loaded.")
    taps: tuple[int, ...] = Field(default=(), description="Blocks of the image tower that the decoder reads, 0-based.")
    input_size_hw: tuple[int, int] | None = Field(default=None, description="What the image tower sees, px.")


class WeightsFile(_Part):
    """The file with the tensors that differ from the base checkpoint."""

    file: str = Field(default="weights.safetensors", pattern=r"^[A-Za-z0-9._-]+$")
    part: Literal["decoder"] = Field(
        default="decoder", description="What the tensors replace: the decoder, where there are any of it; else nothing."
    )
    sha256: Sha256
    size_bytes: int = Field(ge=1)


class TagHead(_Part):
    """Answers that were learned for whole images; their tensors are among the weights (`vlm_core.tag_head`)."""

    questions: dict[str, tuple[str, ...]] = Field(description="Per control its labels.")


class Cuts(_Part):
    """What of the answers is marked, per label; see `backend.decoding.decode_label`."""

    thresholds: dict[str, Probability] = Field(
        default_factory=dict, description="Per label, where the labelling config names none."
    )
    temperatures: dict[str, Annotated[float, Field(gt=0.0)]] = Field(
        default_factory=dict, description="Per label: logits are divided by it before the sigmoid."
    )
    part_scores: dict[str, Probability] = Field(
        default_factory=dict, description="Per label: connected parts with a lower mean probability are dropped."
    )


class DataRecord(_Part):
    """What the version learned from and what it was judged on, by id and by hash."""

    task_ids: tuple[int, ...] = ()
    annotation_ids: tuple[int, ...] = ()
    training_images: tuple[Sha256, ...] = Field(default=(), description="Of the image files, in order.")
    held_out_images: tuple[Sha256, ...] = Field(default=(), description="Never used for fitting or for a choice.")
    counts: dict[str, int] = Field(default_factory=dict, description="Read, skipped, unreadable ...")


class RecipeRecord(_Part):
    """How it was trained: enough to train it again."""

    name: str = Field(min_length=1)
    settings: dict[str, Any] = Field(default_factory=dict)
    chosen: dict[str, Any] = Field(default_factory=dict, description="What the inner split decided.")
    versions: dict[str, str] = Field(default_factory=dict, description="Of torch and this package.")


class ManifestDraft(Cuts):
    """A manifest without the fields that only the store can fill in."""

    base: BaseCheckpoint
    parents: tuple[int, ...] = Field(
        default=(), description="Numbers of the versions it started from; () for the base."
    )
    tag_head: TagHead | None = None
    prompts: dict[str, Any] = Field(default_factory=dict, description="The resolved plan at training time.")
    data: DataRecord = DataRecord()
    recipe: RecipeRecord
    seed: int = Field(ge=0)
    metrics: dict[str, Any] = Field(default_factory=dict, description="The summary; all of it in metrics.json.")
    decision: Literal["better", "not better"] = Field(description="What the gate said when it was written.")
    reason: str = Field(default="", description="The gate's reason, for people.")


class Manifest(ManifestDraft):
    """The whole manifest of one version, as `manifest.json` holds it."""

    schema_version: Literal[1] = SCHEMA_VERSION
    project_id: int = Field(ge=1)
    number: int = Field(ge=1, description="1, 2, 3 ... in the order of writing; 0 is the base model.")
    created_at: datetime
    weights: WeightsFile
