"""Who may import whom, and what importing may do."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("vlm_core", "backend", "training_jobs")


def _modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = _modules()


def _imports(path: Path, *, everywhere: bool) -> Iterator[str]:
    """Names of imported modules: at the top level, or in functions too."""
    tree = ast.parse(path.read_text())
    nodes: Iterator[ast.AST] = ast.walk(tree) if everywhere else _run_on_import(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _run_on_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        yield node
        for name in ("body", "orelse", "finalbody", "handlers"):
            inner = getattr(node, name, None)
            if isinstance(inner, list):
                yield from _run_on_import(inner)


def _names(path: Path, prefixes: tuple[str, ...], *, everywhere: bool = True) -> list[str]:
    return [
        name
        for name in _imports(path, everywhere=everywhere)
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
    ]


def test_there_is_something_to_check() -> None:
    assert {"vlm_core.model", "backend.app", "backend.api.routes", "training_jobs.jobs"} <= set(MODULES)


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("vlm_core")])
def test_the_science_knows_nothing_of_label_studio_http_or_redis(name: str) -> None:
    forbidden = ("backend", "training_jobs", "label_studio_sdk", "label_studio_ml", "fastapi", "starlette", "uvicorn")
    forbidden += ("httpx", "requests", "redis", "rq", "typer")
    assert _names(MODULES[name], forbidden) == []


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("backend")])
def test_the_server_names_jobs_by_string_path(name: str) -> None:
    found = _names(MODULES[name], ("training_jobs",))
    if name == "backend.cli":
        # The composition root may, but only inside a command.
        assert _names(MODULES[name], ("training_jobs",), everywhere=False) == []
    else:
        assert found == []


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("training_jobs")])
def test_jobs_know_nothing_of_the_server(name: str) -> None:
    assert _names(MODULES[name], ("backend.api", "backend.app", "backend.cli", "fastapi", "uvicorn")) == []


@pytest.mark.parametrize("name", MODULES)
def test_one_adapter_per_library(name: str) -> None:
    if name != "vlm_core.image_encoder" and not name.startswith("vlm_core.recipes"):
        assert _names(MODULES[name], ("timm",)) == []
    if name != "backend.plugin":
        assert _names(MODULES[name], ("label_studio_ml", "flask")) == []


PASSED_ON = {"backend.demo.processes"}
"""Hands the whole environment to its children and reads nothing of it."""


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"backend.settings"} - PASSED_ON))
def test_only_the_settings_read_the_environment(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())
    read = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"))
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and {"environ", "getenv"} & {a.name for a in node.names}
        )
    ]
    assert read == []


def _python(script: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-B", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_importing_the_science_imports_no_torch() -> None:
    assert _python("import sys, vlm_core; print('torch' in sys.modules)").strip() == "False"


def test_the_command_answers_help_without_anything_heavy() -> None:
    loaded = _python(
        "import sys; from backend.cli import app; print(sorted(set(sys.modules) & "
        "{'torch', 'transformers', 'fastapi', 'uvicorn', 'redis', 'rq', 'numpy', 'pydantic', 'httpx'}))"
    )
    assert loaded.strip() == "[]"


def test_the_server_listens_before_anything_heavy_is_imported() -> None:
    """They come with the model, in a thread of their own, while `/health` answers."""
    loaded = _python(
        "import sys, backend.server; print(sorted(set(sys.modules) & "
        "{'torch', 'transformers', 'timm', 'numba', 'scipy', 'shapely', 'cv2', 'label_studio_sdk', 'pandas'}))"
    )
    assert loaded.strip() == "[]"


def test_importing_everything_has_no_effect_and_brings_no_flask() -> None:
    """No socket, process, thread or written file by any of our modules; then an app, made but not started."""
    script = f"""
import sys, json, threading, traceback
ROOT, found = {str(ROOT)!r}, []
def watch(event, arguments):
    written = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if not (written or event in ("socket.connect", "socket.bind", "subprocess.Popen", "os.mkdir", "os.rename")):
        return
    # Only what a module of ours does itself, not what libraries do when they are imported.
    for frame in reversed(traceback.extract_stack()[:-1]):
        name = frame.filename
        if "importlib" not in name and not name.startswith("<frozen"):
            if name.startswith(ROOT) and "/.venv" not in name and "site-packages" not in name:
                found.append([event, name, frame.lineno])
            return
sys.addaudithook(watch)
for name in {sorted(MODULES)!r}:
    if not name.endswith("__main__"):
        __import__(name)
threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
import label_studio_sdk.label_interface.interface
from backend.app import create_app
from backend.settings import Settings
create_app(Settings(data_dir="/nowhere"))
flask = sorted({{"flask", "werkzeug", "label_studio_ml"}} & set(sys.modules))
print(json.dumps([found, threads, flask]))
"""
    found, threads, flask = json.loads(_python(script).splitlines()[-1])
    assert found == []
    assert threads == []
    assert flask == []
