"""Labelling configs, parsed once: the plan for the predictor and the SDK's own reading of it for validation.

`extra_params` of a project's connection come with `/setup` only, never with `/predict`, and a replica that
answers `/predict` may not have seen the `/setup`. So what we read of them is kept in the data directory, per
project.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend import atomic
from backend.label_studio.config import LabelConfigError, PredictionPlan, parse_label_config

log = logging.getLogger(__name__)

_CACHED_PLANS = 128
_PREFIX = "model_"


class PredictionCheck:
    """Whether a prediction fits a labelling config, by Label Studio's own rules. Safe to share between threads."""

    def __init__(self, label_config: str) -> None:
        """Read the config with the SDK.

        Raises:
            LabelConfigError: Label Studio's SDK cannot read it.
        """
        from label_studio_sdk.label_interface.interface import LabelInterface

        try:
            self._interface = LabelInterface(label_config)
        except Exception as error:  # the SDK raises whatever its parsers raise
            raise LabelConfigError(
                f"Label Studio's SDK cannot read the labelling config ({type(error).__name__})",
                "Save it again in the project's settings, under Labeling Interface",
            ) from error

    def errors(self, prediction: Mapping[str, Any]) -> list[str]:
        """What Label Studio would refuse the prediction for; empty when it is right."""
        found: list[str] = self._interface.validate_prediction(  # type: ignore[no-untyped-call]
            dict(prediction), return_errors=True
        )
        return found


@dataclass(frozen=True)
class ConfigPlan:
    """One labelling config, ready to predict for.

    Attributes:
        plan: what to predict.
        check: validates predictions before they are answered.
    """

    plan: PredictionPlan
    check: PredictionCheck


class PlanCache:
    """Parses each config once. Safe to share between threads."""

    def __init__(self) -> None:
        """Starts empty."""
        self._plans: OrderedDict[tuple[str, str], ConfigPlan] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, label_config: str, extra_params: Mapping[str, Any] | None = None) -> ConfigPlan:
        """The plan for a config.

        Args:
            label_config: the XML.
            extra_params: the connection's, as `ExtraParams` gives them.

        Raises:
            LabelConfigError: it cannot be used; errors are not cached.
        """
        key = (label_config, json.dumps(dict(extra_params or {}), sort_keys=True))
        with self._lock:
            if key in self._plans:
                self._plans.move_to_end(key)
                return self._plans[key]
        made = ConfigPlan(parse_label_config(label_config, extra_params), PredictionCheck(label_config))
        with self._lock:
            self._plans[key] = made
            while len(self._plans) > _CACHED_PLANS:
                self._plans.popitem(last=False)
        return made


class ExtraParams:
    """What each project's connection says besides its address. Safe to share between threads and processes.

    Only values whose name starts with `model_` are kept: the rest is not ours and may be secret.
    """

    def __init__(self, data_dir: Path) -> None:
        """Nothing is read or created until a method needs it."""
        self._projects = data_dir / "projects"

    def remember(self, project_id: int, value: object) -> dict[str, Any]:
        """Keep the extra parameters that came with `/setup`.

        Args:
            project_id: Label Studio's id.
            value: an object, its JSON as a string, or None.

        Returns:
            The part that is ours, as `of` will give it.

        Raises:
            LabelConfigError: something else; nothing is changed then.
            OSError: the data directory cannot be written.
        """
        own = _own_part(value)
        path = self._path(project_id)
        if own != self.of(project_id):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(path, {"extra_params": own})
        return own

    def of(self, project_id: int) -> dict[str, Any]:
        """The project's extra parameters; {} when there are none or their file cannot be read."""
        path = self._path(project_id)
        try:
            return dict(json.loads(path.read_bytes())["extra_params"])
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("project=%d extra parameters unreadable, taken as none: %s", project_id, type(error).__name__)
            return {}

    def _path(self, project_id: int) -> Path:
        return self._projects / str(project_id) / "connection.json"


def _own_part(value: object) -> dict[str, Any]:
    remedy = 'Write an object, like {"model_score_threshold": 0.4}, or leave them empty'
    if isinstance(value, str):
        if not value.strip():
            return {}
        try:
            value = json.loads(value)
        except ValueError:
            raise LabelConfigError("the connection's extra parameters are not JSON", remedy) from None
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise LabelConfigError(f"the connection's extra parameters are a {type(value).__name__}, not an object", remedy)
    return {
        str(name): item
        for name, item in value.items()
        if str(name).startswith(_PREFIX) and isinstance(item, (str, int, float, bool))
    }
