"""All settings of learning from corrections, in one document with defaults that work.

`VLM_TRAIN_RECIPE` names a YAML file, or holds the YAML itself; `vlm train recipe` prints the defaults with what each
means. The whole document is checked before anything is loaded.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training_jobs.errors import CannotTrainError
from training_jobs.recipes.finetune_decoder import FinetuneConfig
from training_jobs.recipes.fit_mask_head import MaskHeadConfig
from training_jobs.recipes.tune_conditions import ConditionsConfig

NAME = "ladder"
_WIDTH = 100

Share = Annotated[float, Field(gt=0.0, le=1.0)]


class TagsConfig(BaseModel):
    """Settings of the answers for whole images; see `training_jobs.tag_ladder`.

    Raises:
        pydantic.ValidationError: a value out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    least_images: int = Field(default=8, ge=4, description="That must be answered before anything is learned.")
    pulls: tuple[Annotated[float, Field(gt=0.0)], ...] = Field(
        default=(3.0, 1.0, 0.3, 0.1, 0.03, 0.01),
        min_length=1,
        description="Strengths of the pull towards the text that are tried; 1 is strong with ten images.",
    )


class RecipeConfig(BaseModel):
    """See `training_jobs.ladder` for what the settings do.

    Raises:
        pydantic.ValidationError: a value out of range, or a name that is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    choose_from: int = Field(default=8, ge=4, description="Training images from which anything is chosen.")
    folds: int = Field(default=3, ge=2, le=10, description="Of the cross-validation that chooses.")
    least_images: int = Field(
        default=3, ge=1, description="That must show a label that is not known before anything of it is learned."
    )
    known_from: float = Field(
        default=0.2, ge=0, le=1, description="Mean IoU, where a label is, from which on it counts as known."
    )
    least_images_known: int = Field(
        default=24, ge=1, description="That must show a label that is known, but not well, before it is learned anew."
    )
    cut_from: int = Field(
        default=30, ge=1, description="Images that must show a label before its threshold and part score are chosen."
    )
    least_gain: float = Field(
        default=0.01, ge=0, description="In IoU, by which a choice must beat leaving things as they are."
    )
    good_enough: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="Mean IoU, where a label is, from which on its phrases and its cut are left as they are.",
    )
    shares: tuple[Share, ...] = Field(
        default=(0.5, 1.0), min_length=1, description="How far to go from a phrase's own condition to the learned one."
    )
    absent_cost: float = Field(
        default=0.3, ge=0, description="In IoU, of marking a label in all images that do not show it."
    )
    most_absent_rise: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Of the share of images in which a label is marked that is not there; cuts rise until it holds.",
    )
    head_from: int = Field(
        default=4, ge=1, description="Training images from which labels may get a head beside the decoder."
    )
    lora_from: int | None = Field(
        default=None,
        ge=4,
        description="Training images from which the image encoder's last blocks may learn with the head (LoRA); null: "
        "never. It takes several times as long, and a GPU where the encoder is large.",
    )
    most_marked: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="Share of images without a label in which it may be marked; else what was learned is not used.",
    )
    decoder_from: int = Field(default=60, ge=4, description="Training images from which the decoder learns too.")
    most_label_loss: float = Field(
        default=0.03, ge=0, description="In IoU, that a label may pay for fewer false marks."
    )
    conditions: ConditionsConfig = ConditionsConfig()
    head: MaskHeadConfig = MaskHeadConfig()
    decoder: FinetuneConfig = FinetuneConfig()
    tags: TagsConfig = TagsConfig()

    @model_validator(mode="after")
    def _folds_fit(self) -> RecipeConfig:
        if self.choose_from < self.folds:
            raise ValueError(f"choose_from {self.choose_from} images cannot make {self.folds} folds")
        return self


def read_recipe(given: str | None) -> RecipeConfig:
    """The settings of `VLM_TRAIN_RECIPE`: defaults, changed by what is given.

    Args:
        given: the path of a YAML file, or YAML (JSON is YAML too); None or blank: the defaults.

    Raises:
        CannotTrainError: a file that cannot be read, no YAML, a setting that there is not, or a value out of range; all
            that is wrong is named.
    """
    text = given or ""
    where = "VLM_TRAIN_RECIPE"
    if text.strip().endswith((".yaml", ".yml")) and "\n" not in text.strip():
        where = text.strip()
        try:
            text = Path(where).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CannotTrainError(f"VLM_TRAIN_RECIPE: {where} cannot be read: {error}") from error
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise CannotTrainError(f"{where} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise CannotTrainError(f"{where} holds {values!r}, not settings by name; `vlm train recipe` prints all of them")
    try:
        return RecipeConfig.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}"
            for item in error.errors(include_url=False)
        )
        raise CannotTrainError(f"{where}: {wrong}; `vlm train recipe` prints all settings") from None


def recipe_yaml(config: RecipeConfig | None = None) -> str:
    """All settings as YAML, each with what it means; `read_recipe` reads it back."""
    return "\n".join(_lines(config or RecipeConfig(), "")) + "\n"


def _lines(model: BaseModel, indent: str) -> list[str]:
    lines: list[str] = []
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            about = (type(value).__doc__ or "").partition("\n")[0]
            lines += ["", f"{indent}# {about}", f"{indent}{name}:", *_lines(value, indent + "  ")]
            continue
        if field.description:
            lines += textwrap.wrap(
                field.description, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
            )
        lines.append(f"{indent}{name}: {_scalar(value)}")
    return lines


def _scalar(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True)
    return text.removesuffix("\n").removesuffix("...").strip()
