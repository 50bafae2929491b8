"""All settings of learning from corrections, in one document with defaults that work.

`VLM_TRAIN_RECIPE` names a YAML file, or holds the YAML itself; `vlm train recipe` prints the defaults with what each
means. The whole document is checked before anything is loaded.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from training_jobs.errors import CannotTrainError
from training_jobs.recipes.finetune_decoder import FinetuneConfig

_WIDTH = 100


def read_recipe(given: str | None) -> FinetuneConfig:
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
        return FinetuneConfig.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}"
            for item in error.errors(include_url=False)
        )
        raise CannotTrainError(f"{where}: {wrong}; `vlm train recipe` prints all settings") from None


def recipe_yaml(config: FinetuneConfig | None = None) -> str:
    """All settings as YAML, each with what it means; `read_recipe` reads it back."""
    config = config or FinetuneConfig()
    lines: list[str] = []
    for name, field in FinetuneConfig.model_fields.items():
        about = field.description or ""
        lines += textwrap.wrap(about, _WIDTH, initial_indent="# ", subsequent_indent="# ")
        lines.append(f"{name}: {_scalar(getattr(config, name))}")
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True)
    return text.removesuffix("\n").removesuffix("...").strip()
