"""Labelling configs, parsed once: the plan for the predictor and the SDK's own reading of it for validation.

`extra_params` of a project's connection come with `/setup` only, never with `/predict`, and a replica that
answers `/predict` may not have seen the `/setup`. So what we read of them is kept in the data directory, per
project.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend import atomic
from backend.label_studio.config import LabelConfigError, PredictionPlan, parse_label_config
from backend.label_studio.interactive_config import InteractiveConfig, read_interactive_config

log = logging.getLogger(__name__)

_CACHED_PLANS = 128
_PREFIX = "model_"
_XML_DECLARATION = re.compile(r"\A\s*<\?xml\b[^>]*\?>")


class PredictionCheck:
    """Whether a prediction fits a labelling config, by Label Studio's own rules. Safe to share between threads."""

    def __init__(self, label_config: str) -> None:
        """Read the config with the SDK.

        Raises:
            LabelConfigError: Label Studio's SDK cannot read it.
        """
        from label_studio_sdk.label_interface.interface import LabelInterface

        try:
            # A declaration with an encoding is right in a file, but the SDK's parser refuses it in text.
            self._interface = LabelInterface(_XML_DECLARATION.sub("", label_config))
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
        interactive: what annotators ask with, and where they are told what came of it.
    """

    plan: PredictionPlan
    check: PredictionCheck
    interactive: InteractiveConfig = field(default_factory=InteractiveConfig)


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
        plan = parse_label_config(label_config, extra_params)
        made = ConfigPlan(plan, PredictionCheck(label_config), read_interactive_config(label_config, plan))
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

        Parameters that cannot be used are remembered as such: predictions must not go on with former ones
        while `/setup` says otherwise.

        Args:
            project_id: Label Studio's id.
            value: an object, its JSON as a string, or None.

        Returns:
            The part that is ours, as `of` will give it.

        Raises:
            LabelConfigError: something else; `of` raises it too from now on.
            OSError: the data directory cannot be written.
        """
        kept: dict[str, Any]
        try:
            kept = {"extra_params": _own_part(value)}
        except _UnusableError as error:
            kept = {"unusable": str(error)}
        path = self._path(project_id)
        # Also where there are none: from then on the project is known, see `training_jobs.reconcile`.
        if kept != self._read(project_id) or not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(path, kept)
        return _usable(kept)

    def of(self, project_id: int) -> dict[str, Any]:
        """The project's extra parameters; {} when there are none or their file cannot be read.

        Raises:
            LabelConfigError: the project's connection has some that cannot be used.
        """
        return _usable(self._read(project_id))

    def _read(self, project_id: int) -> dict[str, Any]:
        nothing: dict[str, Any] = {"extra_params": {}}
        try:
            kept = json.loads(self._path(project_id).read_bytes())
            if "unusable" in kept:
                return {"unusable": str(kept["unusable"])}
            return {"extra_params": dict(kept["extra_params"])}
        except FileNotFoundError:
            return nothing
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("project=%d extra parameters unreadable, taken as none: %s", project_id, type(error).__name__)
            return nothing

    def _path(self, project_id: int) -> Path:
        return self._projects / str(project_id) / "connection.json"


class _UnusableError(ValueError):
    """What is wrong with a connection's extra parameters."""


def _usable(kept: Mapping[str, Any]) -> dict[str, Any]:
    if "unusable" in kept:
        raise LabelConfigError(
            f"the connection's extra parameters {kept['unusable']}",
            'Write an object, like {"model_score_threshold": 0.4}, or leave them empty',
        )
    return dict(kept["extra_params"])


def _own_part(value: object) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError):
            raise _UnusableError("are not JSON") from None
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _UnusableError(f"are a {type(value).__name__}, not an object")
    own = {
        str(name): item
        for name, item in value.items()
        if str(name).startswith(_PREFIX) and isinstance(item, (str, int, float, bool))
    }
    try:
        atomic.json_bytes(own)
    except ValueError:
        raise _UnusableError("hold NaN, infinity or half of a character pair") from None
    return own
