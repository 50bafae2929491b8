"""Every setting of the server, the worker and the commands; the only reader of the environment.

`Settings` is validated whole when it is made, so that a wrong value stops the start and not a request hours
later. Values come from keyword arguments first, then from the environment; there is no file of settings. An
environment variable that is set to nothing counts as not set (compose files pass `REDIS_URL=`).

Use `load_settings` in commands: its error lists every wrong variable at once, by the name the operator typed,
and never shows the value of a secret.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from backend.label_studio.task_filter import TaskFilterError, parse_choice

DEFAULT_CHECKPOINT = "CIDAS/clipseg-rd64-refined"
_MIB = 1024 * 1024
_SHORTEST_SECRET = 8
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


class SettingsError(ValueError):
    """The environment holds values that cannot be used; the message lists all of them with the remedy."""


class Settings(BaseSettings):
    """What can be configured, with the environment variable of each setting.

    Raises:
        pydantic.ValidationError: a value is wrong; `load_settings` turns it into a `SettingsError`.
    """

    model_config = SettingsConfigDict(
        populate_by_name=True, extra="ignore", env_ignore_empty=True, frozen=True, validate_default=True
    )

    # The model ------------------------------------------------------------------------------------------
    checkpoint: str = Field(
        DEFAULT_CHECKPOINT,
        min_length=1,
        validation_alias=AliasChoices("VLM_CHECKPOINT"),
        description="Hub id, directory, or 'demo' (coloured shapes only; knows nothing of photographs).",
    )
    device: str = Field(
        "auto",
        validation_alias=AliasChoices("VLM_DEVICE"),
        description="auto, cpu, cuda, cuda:N or mps. auto takes a GPU where there is one.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        validation_alias=AliasChoices("VLM_DTYPE"),
        description="Arithmetic of the model: auto, float32, bfloat16 or float16.",
    )
    gpu_memory_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        validation_alias=AliasChoices("VLM_GPU_MEMORY_FRACTION"),
        description="Most of a GPU's memory that one process may take, 0 to 1; for serving and training on one GPU.",
    )
    max_loaded_versions: int = Field(
        16,
        ge=1,
        le=1024,
        validation_alias=AliasChoices("VLM_MAX_LOADED_VERSIONS"),
        description="Project decoders kept in memory; the one used longest ago makes room. About 5 MB each.",
    )

    # Where things lie -------------------------------------------------------------------------------------
    data_dir: Path = Field(
        Path("~/.local/share/label-studio-vlm-backend"),
        validation_alias=AliasChoices("VLM_DATA_DIR"),
        description="Project versions, caches and the embedded Redis. One volume to back up.",
    )
    redis_url: str | None = Field(
        None,
        repr=False,  # it may hold a password
        validation_alias=AliasChoices("REDIS_URL"),
        description="redis://, rediss:// or unix://. Not set: a private redis-server in the data directory.",
    )

    # The server -------------------------------------------------------------------------------------------
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        validation_alias=AliasChoices("VLM_HOST"),
        description="Address to listen on. 0.0.0.0 for every interface: set BASIC_AUTH_USER and _PASS then.",
    )
    port: int = Field(
        9090,
        ge=0,
        le=65535,
        validation_alias=AliasChoices("PORT"),
        description="Port to listen on. 0: a free one.",
    )
    backend_url: str | None = Field(
        None,
        validation_alias=AliasChoices("VLM_BACKEND_URL"),
        description="This backend's address as Label Studio reaches it, for `vlm connect`. Default: this machine.",
    )
    basic_auth_user: str | None = Field(
        None,
        min_length=1,
        validation_alias=AliasChoices("BASIC_AUTH_USER"),
        description="User that Label Studio must send (set with BASIC_AUTH_PASS, or neither).",
    )
    basic_auth_pass: SecretStr | None = Field(
        None,
        min_length=1,
        validation_alias=AliasChoices("BASIC_AUTH_PASS"),
        description="Password that Label Studio must send.",
    )
    webhook_secret: SecretStr | None = Field(
        None,
        min_length=8,
        validation_alias=AliasChoices("VLM_WEBHOOK_SECRET"),
        description="What webhooks must carry in X-VLM-Webhook-Secret; `vlm connect` writes it there.",
    )
    request_max_bytes: int = Field(
        256 * _MIB,
        ge=1024,
        validation_alias=AliasChoices("VLM_REQUEST_MAX_BYTES"),
        description="Largest request body. A task carries its earlier brush masks, megabytes each.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        "INFO", validation_alias=AliasChoices("LOG_LEVEL"), description="Least severe level that is logged."
    )
    log_format: Literal["text", "json"] = Field(
        "text",
        validation_alias=AliasChoices("VLM_LOG_FORMAT"),
        description="Lines of the log: text (key=value), or json (one object a line, for a collector).",
    )

    # Label Studio -----------------------------------------------------------------------------------------
    label_studio_url: str | None = Field(
        None,
        validation_alias=AliasChoices("LABEL_STUDIO_URL", "LABEL_STUDIO_HOST"),
        description="Address of Label Studio as this machine reaches it, e.g. http://localhost:8080.",
    )
    label_studio_api_key: SecretStr | None = Field(
        None,
        min_length=1,
        validation_alias=AliasChoices("LABEL_STUDIO_API_KEY", "LABEL_STUDIO_ACCESS_TOKEN"),
        description="Personal access token (Label Studio: Account & Settings), or a legacy token.",
    )
    label_studio_timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        validation_alias=AliasChoices("VLM_LABEL_STUDIO_TIMEOUT_S"),
        description="Seconds to wait for one answer of Label Studio's API; for that to an import three times as many.",
    )

    show_scores: bool = Field(
        True,
        validation_alias=AliasChoices("VLM_SHOW_SCORES"),
        description="Let the connection's title in Label Studio follow the model version: scores show in the Data "
        "Manager, and uncertainty sampling goes by them.",
    )

    # Images -----------------------------------------------------------------------------------------------
    allow_private_addresses: bool = Field(
        False,
        validation_alias=AliasChoices("VLM_ALLOW_PRIVATE_ADDRESSES"),
        description="Fetch images from private addresses too. LABEL_STUDIO_URL's own is always allowed.",
    )
    local_files_root: Path | None = Field(
        None,
        validation_alias=AliasChoices("VLM_LOCAL_FILES_ROOT", "LOCAL_FILES_DOCUMENT_ROOT"),
        description="Directory behind /data/local-files/?d=...; read directly when this machine has it.",
    )
    image_max_bytes: int = Field(
        50 * _MIB,
        ge=1024,
        validation_alias=AliasChoices("VLM_IMAGE_MAX_BYTES"),
        description="Largest image file that is fetched.",
    )
    image_max_pixels: int = Field(
        100_000_000,
        ge=1,
        validation_alias=AliasChoices("VLM_IMAGE_MAX_PIXELS"),
        description="Largest image that is decoded, width times height.",
    )
    image_timeout_s: float = Field(
        20.0,
        gt=0,
        le=600,
        validation_alias=AliasChoices("VLM_IMAGE_TIMEOUT_S"),
        description="Seconds that fetching one image may take in all.",
    )
    image_cache_bytes: int = Field(
        2048 * _MIB,
        ge=0,
        validation_alias=AliasChoices("VLM_IMAGE_CACHE_BYTES"),
        description="Room for fetched images on disk; the ones used longest ago make room. 0: no cache.",
    )
    image_fetch_threads: int = Field(
        8,
        ge=1,
        le=64,
        validation_alias=AliasChoices("VLM_IMAGE_FETCH_THREADS"),
        description="Tasks worked on at the same time: most of that is waiting for their images.",
    )

    feature_cache_bytes: int = Field(
        256 * _MIB,
        ge=0,
        validation_alias=AliasChoices("VLM_FEATURE_CACHE_BYTES"),
        description="Memory for what the model saw in recent images (2 to 5 MB each). 0: none.",
    )
    feature_disk_bytes: int = Field(
        4096 * _MIB,
        ge=0,
        validation_alias=AliasChoices("VLM_FEATURE_DISK_BYTES"),
        description="Room on disk for more of the same, which outlives a restart. 0: none.",
    )

    # Predicting and learning ------------------------------------------------------------------------------
    predict_deadline_s: float = Field(
        80.0,
        gt=0,
        le=3600,
        validation_alias=AliasChoices("VLM_PREDICT_DEADLINE_S"),
        description="Seconds until /predict answers with what is done. Label Studio gives up after 100.",
    )
    train_min_annotations: int = Field(
        1,
        ge=1,
        validation_alias=AliasChoices("VLM_TRAIN_MIN_ANNOTATIONS"),
        description="New annotations that an automatic training needs; the button always trains.",
    )
    train_wait_s: float = Field(
        0.0,
        ge=0,
        le=86400,
        validation_alias=AliasChoices("VLM_TRAIN_WAIT_S"),
        description="Seconds that an automatic training waits for further corrections, from the first one on. 0: none.",
    )
    prelabel_after_publish: str = Field(
        "off",
        validation_alias=AliasChoices("VLM_PRELABEL_AFTER_PUBLISH"),
        description="Tasks that are pre-labelled again when a better version serves: off, unannotated, all, or "
        "conditions as of `vlm prelabel --filter`, with ; between them.",
    )
    keep_versions: int = Field(
        10,
        ge=1,
        validation_alias=AliasChoices("VLM_KEEP_VERSIONS"),
        description="Newest versions of a project that stay; older ones go after each training, but never what serves.",
    )
    reconcile_s: float = Field(
        300.0,
        ge=0,
        le=7 * 24 * 3600,
        validation_alias=AliasChoices("VLM_RECONCILE_S"),
        description="Seconds between two looks of the worker for annotations of which no webhook has told. 0: none.",
    )
    train_timeout_s: int = Field(
        3600,
        ge=1,
        validation_alias=AliasChoices("VLM_TRAIN_TIMEOUT_S"),
        description="Seconds after which a training job is stopped.",
    )
    train_recipe: str | None = Field(
        None,
        validation_alias=AliasChoices("VLM_TRAIN_RECIPE"),
        description="Changed settings of the training recipe: a YAML file's path, or YAML like {decoder_from: 100}; "
        "`vlm train recipe` prints all of them.",
    )
    train_devices: str | None = Field(
        None,
        validation_alias=AliasChoices("VLM_TRAIN_DEVICES"),
        description="Devices that share the fits of one training, like cuda:0,cuda:1, or all: every GPU there is. "
        "Default: the one of VLM_DEVICE.",
    )

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not _DEVICE.fullmatch(value):
            raise ValueError("use auto, cpu, cuda, cuda:N or mps")
        return value

    @field_validator("train_devices")
    @classmethod
    def _known_devices(cls, value: str | None) -> str | None:
        if value is None or value.strip() == "all":
            return value and value.strip()
        names = [name.strip() for name in value.split(",")]
        if wrong := [name for name in names if name == "auto" or not _DEVICE.fullmatch(name)]:
            raise ValueError(f"{wrong[0]!r} is no device: name some, like cuda:0,cuda:1, or use all")
        return ",".join(names)

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper_case(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("prelabel_after_publish")
    @classmethod
    def _choice_of_tasks(cls, value: str) -> str:
        try:
            parse_choice(value)
        except TaskFilterError as error:
            raise ValueError(f"write off, unannotated or all; else {error}") from None
        return value

    @field_validator("data_dir", "local_files_root")
    @classmethod
    def _expand_home(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("label_studio_url", "backend_url")
    @classmethod
    def _http_origin(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("write it with its scheme, like http://localhost:8080")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("leave user, password, query and fragment out; the token has its own setting")
        return value.rstrip("/")

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in ("redis", "rediss", "unix"):
            raise ValueError("start it with redis://, rediss:// or unix://")
        return value

    @model_validator(mode="after")
    def _both_or_neither(self) -> Settings:
        if (self.basic_auth_user is None) != (self.basic_auth_pass is None):
            raise ValueError("set both BASIC_AUTH_USER and BASIC_AUTH_PASS, or neither")
        return self

    @property
    def basic_auth(self) -> tuple[str, str] | None:
        """User and password in clear, for who asks the backend; None: it wants none."""
        if self.basic_auth_user is None or self.basic_auth_pass is None:
            return None
        return self.basic_auth_user, self.basic_auth_pass.get_secret_value()

    @property
    def secrets(self) -> frozenset[str]:
        """All that must not be in a log, in clear. Short ones are left out: they would be found in any word."""
        held = [self.basic_auth_pass, self.webhook_secret, self.label_studio_api_key]
        texts = [secret.get_secret_value() for secret in held if secret is not None]
        texts.append(urlsplit(self.redis_url or "").password or "")
        if self.basic_auth is not None:
            texts.append(base64.b64encode(":".join(self.basic_auth).encode()).decode())
        return frozenset(text for text in texts if len(text) >= _SHORTEST_SECRET)

    @property
    def label_studio_token(self) -> str | None:
        """The API token in clear, for the client only."""
        return None if self.label_studio_api_key is None else self.label_studio_api_key.get_secret_value()


def load_settings(**overrides: Any) -> Settings:
    """Read and validate all settings.

    Args:
        overrides: settings by attribute name that win over the environment; None means not given.

    Raises:
        SettingsError: at least one value is wrong; every wrong one is named.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors(include_url=False, include_context=False)]
        raise SettingsError("Wrong settings:\n" + "\n".join(f"  {line}" for line in lines)) from None


def child_environment(settings: Settings) -> dict[str, str]:
    """The environment for a child process that must have the same settings, command-line options included."""
    environment = dict(os.environ)
    for attribute, field in Settings.model_fields.items():
        alias = field.validation_alias
        for name in alias.choices if isinstance(alias, AliasChoices) else []:
            environment.pop(str(name), None)
        value = getattr(settings, attribute)
        if value is not None:
            environment[variable_name(attribute)] = (
                value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            )
    return environment


def environment_default(name: str, value: str) -> None:
    """Set an environment variable of this process and its children, unless it is set already."""
    os.environ.setdefault(name, value)


def variable_name(attribute: str) -> str:
    """The environment variable of a setting, the first one where there are several."""
    alias = Settings.model_fields[attribute].validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else attribute.upper()


def _explain(item: Mapping[str, Any]) -> str:
    """One wrong value in one line: variable, what is wrong, and the value unless it is secret."""
    location = str(item["loc"][0]) if item["loc"] else ""
    attribute = _attribute_of(location)
    message = str(item["msg"]).removeprefix("Value error, ")
    if attribute is None:
        return message
    field = Settings.model_fields[attribute]
    secret = not field.repr or "Secret" in str(field.annotation)
    shown = "" if secret else f" (it is {item['input']!r})"
    return f"{variable_name(attribute)}: {message}{shown}. {field.description}"


def _attribute_of(location: str) -> str | None:
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        names = alias.choices if isinstance(alias, AliasChoices) else []
        if location == name or location in names:
            return name
    return None
