"""The files that operators start from: what they name exists, and nothing that exists is left out."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from backend.label_studio.config import parse_label_config
from backend.settings import Settings, load_settings, variable_name

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE_FILES = sorted(DOCKER.glob("compose*.yaml"))
EXAMPLE = (DOCKER / ".env.example").read_text()
NAMES = re.findall(r"^(?:# )?([A-Z][A-Z0-9_]*)=", EXAMPLE, flags=re.MULTILINE)
TOOL = runpy.run_path(str(ROOT / "tools" / "env_example.py"))
SECRETS = ("LABEL_STUDIO_PASSWORD", "LABEL_STUDIO_API_KEY", "VLM_WEBHOOK_SECRET", "BASIC_AUTH_PASS")


class _Loader(yaml.SafeLoader):
    """Knows compose's tags that take something back."""


_Loader.add_constructor("!reset", lambda loader, node: None)


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load((DOCKER / name).read_text(), _Loader)
    return loaded


def make_env(target: Path, *pairs: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(DOCKER / "make-env.sh"), *pairs],
        env={**os.environ, "ENV_FILE": str(target)},
        capture_output=True,
        text=True,
        check=False,
    )


def values(path: Path) -> dict[str, str]:
    lines = (line.partition("=") for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in lines}


def test_the_example_is_what_its_tool_writes() -> None:
    assert TOOL["render"]() == EXAMPLE, "run: python tools/env_example.py > docker/.env.example"


def test_every_setting_reaches_the_containers() -> None:
    given = set(compose()["x-environment"])
    assert {variable_name(name) for name in Settings.model_fields} - set(TOOL["FIXED"]) <= given
    fixed = re.findall(r"^ +(?:ENV )?([A-Z_]+)=", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert set(TOOL["FIXED"]) <= {*fixed, *given}


def test_the_example_explains_all_variables_of_the_compose_files_and_no_other() -> None:
    used = {name for path in COMPOSE_FILES for name in re.findall(r"\$\{([A-Z0-9_]+)", path.read_text())}
    assert used == set(NAMES) - {"COMPOSE_PROFILES"}
    assert len(NAMES) == len(set(NAMES))


def test_defaults_in_the_compose_files_are_those_of_the_example() -> None:
    told = dict(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]*)=(.*)$", EXAMPLE, flags=re.MULTILINE))
    for path in COMPOSE_FILES:
        for name, default in re.findall(r"\$\{([A-Z0-9_]+):?-([^}]*)\}", path.read_text()):
            # Empty: the settings class has the default. A GPU image takes torch from elsewhere.
            if default and (name, path.name) != ("TORCH_INDEX", "compose.gpu.yaml"):
                assert default == told[name], f"{name} in {path.name}"


@pytest.mark.parametrize("name", ["backend", "worker", "connect", "redis", "label-studio"])
def test_only_label_studio_and_the_backend_are_published_and_to_this_machine(name: str) -> None:
    ports = compose()["services"][name].get("ports", [])
    assert bool(ports) == (name in ("backend", "label-studio"))
    assert all("127.0.0.1" in port for port in ports)


def test_our_containers_have_no_rights_that_they_do_not_need() -> None:
    services = {**compose("compose.scale.yaml")["services"], **compose()["services"]}
    for name in ("backend", "worker", "connect", "proxy"):
        assert services[name]["read_only"], name
        assert services[name]["cap_drop"] == ["ALL"], name


def test_make_env_writes_other_secrets_each_time_for_its_owner_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for path in (first, second):
        assert make_env(path).returncode == 0
        assert path.stat().st_mode & 0o777 == 0o600
    for name in SECRETS:
        assert len(values(first)[name]) >= 24
        assert values(first)[name] != values(second)[name]
    assert set(values(first)) <= set(NAMES)
    before = first.read_text()
    again = make_env(first)
    assert again.returncode == 0
    assert "kept" in again.stdout
    assert first.read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_make_env_takes_values_as_they_are_and_no_unknown_names(tmp_path: Path) -> None:
    recipe = r'{"steps": 5, "name": "a&b\1 $HOME"}'
    assert make_env(tmp_path / "a", "VLM_CHECKPOINT=demo", f"VLM_TRAIN_RECIPE={recipe}").returncode == 0
    assert values(tmp_path / "a")["VLM_CHECKPOINT"] == "demo"
    assert values(tmp_path / "a")["VLM_TRAIN_RECIPE"] == recipe
    wrong = make_env(tmp_path / "b", "VLM_CHEKPOINT=demo")
    assert wrong.returncode != 0
    assert "VLM_CHEKPOINT" in wrong.stderr
    assert not (tmp_path / "b").exists()


def test_what_make_env_writes_are_settings_that_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_env(tmp_path / "a").returncode == 0
    for name, value in values(tmp_path / "a").items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.basic_auth is not None
    assert settings.webhook_secret is not None


def test_the_first_project_s_example_is_predicted_for() -> None:
    plan = parse_label_config((DOCKER / "first-project" / "label-config.example.xml").read_text())
    assert {control.kind for control in plan.controls} == {"brushlabels", "choices"}


def test_no_secret_and_no_data_goes_to_the_builder() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "everything is left out but what is named"
    for pattern in (".env", "tests", "shared", "docker\n", ".git"):
        assert not any(line.removeprefix("!").rstrip("/") == pattern.strip() for line in lines if line.startswith("!"))
