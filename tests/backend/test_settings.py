from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backend.settings import Settings, SettingsError, child_environment, load_settings, variable_name


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields.values():
        for name in field.validation_alias.choices:  # type: ignore[union-attr]
            monkeypatch.delenv(str(name), raising=False)


def test_defaults_are_usable() -> None:
    settings = load_settings()
    assert settings.checkpoint == "CIDAS/clipseg-rd64-refined"
    assert settings.port == 9090
    assert settings.host == "127.0.0.1"
    assert settings.redis_url is None
    assert settings.data_dir.is_absolute()
    assert not settings.allow_private_addresses


@pytest.mark.parametrize(
    ("variable", "text", "attribute", "value"),
    [
        ("VLM_CHECKPOINT", "demo", "checkpoint", "demo"),
        ("PORT", "0", "port", 0),
        ("LABEL_STUDIO_URL", "http://ls:8080/", "label_studio_url", "http://ls:8080"),
        ("LABEL_STUDIO_HOST", "https://ls/sub/", "label_studio_url", "https://ls/sub"),
        ("LABEL_STUDIO_ACCESS_TOKEN", "abc", "label_studio_token", "abc"),
        ("LABEL_STUDIO_API_KEY", "abc", "label_studio_token", "abc"),
        ("VLM_DEVICE", "cuda:1", "device", "cuda:1"),
        ("LOG_LEVEL", "debug", "log_level", "DEBUG"),
        ("LOCAL_FILES_DOCUMENT_ROOT", "/files", "local_files_root", Path("/files")),
        ("REDIS_URL", "", "redis_url", None),  # compose files pass empty variables
        ("REDIS_URL", "rediss://u:p@r:1/2", "redis_url", "rediss://u:p@r:1/2"),
    ],
)
def test_variables_are_read(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, attribute: str, value: object
) -> None:
    monkeypatch.setenv(variable, text)
    assert getattr(load_settings(), attribute) == value


def test_the_newer_name_wins_over_the_older(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://new:1")
    monkeypatch.setenv("LABEL_STUDIO_HOST", "http://old:1")
    assert load_settings().label_studio_url == "http://new:1"


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    assert load_settings(port=2).port == 2
    assert load_settings(port=None).port == 1


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("PORT", "99999", "PORT"),
        ("PORT", "http", "'http'"),
        ("VLM_DEVICE", "gpu", "use auto, cpu, cuda, cuda:N or mps"),
        ("VLM_DTYPE", "fp16", "'fp16'"),
        ("LABEL_STUDIO_URL", "localhost:8080", "with its scheme"),
        ("LABEL_STUDIO_HOST", "ftp://x", "LABEL_STUDIO_URL"),
        ("LABEL_STUDIO_URL", "http://user:pass@ls", "leave user, password"),
        ("REDIS_URL", "http://x", "redis://"),
        ("BASIC_AUTH_USER", "me", "BASIC_AUTH_PASS"),
        ("VLM_PREDICT_DEADLINE_S", "0", "VLM_PREDICT_DEADLINE_S"),
        ("VLM_PREDICT_DEADLINE_S", "nan", "VLM_PREDICT_DEADLINE_S"),
        ("LOG_LEVEL", "loud", "LOG_LEVEL"),
    ],
)
def test_wrong_values_are_named(monkeypatch: pytest.MonkeyPatch, variable: str, text: str, says: str) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert says in str(caught.value)


def test_all_wrong_values_are_named_at_once_and_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "x")
    monkeypatch.setenv("REDIS_URL", "http://:hunter2@host")
    monkeypatch.setenv("VLM_WEBHOOK_SECRET", "hush")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    text = str(caught.value)
    assert all(name in text for name in ("PORT", "REDIS_URL", "VLM_WEBHOOK_SECRET"))
    assert "hunter2" not in text
    assert "hush" not in text


def test_secrets_are_not_in_the_representation() -> None:
    settings = Settings(
        basic_auth_user="u",
        basic_auth_pass="hunter2",
        webhook_secret="hunter2hunter2",
        label_studio_api_key="hunter2",
        redis_url="redis://:hunter2@r",
    )
    assert "hunter2" not in repr(settings) + str(settings)


def test_a_child_process_gets_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_HOST", "http://old:1")
    monkeypatch.setenv("PORT", "1")
    settings = load_settings(
        port=2,
        data_dir=tmp_path,
        label_studio_url="http://ls:8080",
        label_studio_api_key="key",
        allow_private_addresses=True,
    )
    script = "from backend.settings import load_settings; s = load_settings(); print(s.label_studio_token, repr(s))"
    ran = subprocess.run(
        [sys.executable, "-c", script], env=child_environment(settings), capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == f"key {settings!r}"


def test_every_setting_is_documented_and_has_a_variable() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert variable_name(name).isupper()
