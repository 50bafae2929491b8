"""Print docker/.env.example: `python tools/env_example.py > docker/.env.example`.

The backend's and worker's variables come from the settings class with their defaults and meanings; what only compose
files use is listed here. A test holds that the file is what this prints, and that the compose files use just these.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from backend.settings import Settings, variable_name

FIXED = ("VLM_HOST", "PORT", "VLM_DATA_DIR", "REDIS_URL")
"""Set by the image and the compose file themselves."""

IN_COMPOSE = {"backend_url": "http://backend.vlm.internal:9090", "label_studio_url": "http://label-studio:8080"}
"""Defaults that differ in a compose network."""


@dataclass(frozen=True)
class Variable:
    """One variable: `active` lines are written as they are, the others as a comment that shows the default."""

    name: str
    default: str
    meaning: str
    active: bool = False


COMPOSE: dict[str, tuple[Variable, ...]] = {
    "Label Studio": (
        Variable(
            "COMPOSE_PROFILES",
            "label-studio",
            "Empty: no Label Studio here, you have one; LABEL_STUDIO_URL then "
            "says where, and BACKEND_PUBLISH must be an address that it reaches.",
            active=True,
        ),
        Variable(
            "LABEL_STUDIO_USERNAME", "admin@localhost.localdomain", "Its first user's e-mail address.", active=True
        ),
        Variable("LABEL_STUDIO_PASSWORD", "", "That user's password. `make env` writes a random one.", active=True),
        Variable("LABEL_STUDIO_PUBLISH", "127.0.0.1:8080", "Address and port that it is published on."),
        Variable("LABEL_STUDIO_PUBLIC_URL", "", "Its address as browsers see it, behind a proxy of your own."),
        Variable("LABEL_STUDIO_ANALYTICS", "false", "Whether it sends usage data to its makers."),
    ),
    "The project that is connected": (
        Variable("VLM_PROJECT", "0", "Label Studio's id of the project; 0: the one of VLM_FIRST_PROJECT."),
        Variable(
            "VLM_FIRST_PROJECT",
            "./first-project",
            "Folder with label-config.xml, and maybe title.txt and images/: "
            "a project is made of it. Without label-config.xml nothing is connected.",
        ),
    ),
    "Images, folders and ports": (
        Variable("VLM_IMAGE", "label-studio-vlm-backend:latest", "The image of backend and worker."),
        Variable("VLM_PROXY_IMAGE", "label-studio-vlm-proxy:latest", "The image of the proxy (compose.scale.yaml)."),
        Variable(
            "TORCH_INDEX",
            "https://download.pytorch.org/whl/cpu",
            "Where torch comes from when the image is built. "
            "Empty: PyPI's builds with CUDA, which compose.gpu.yaml takes by default.",
        ),
        Variable(
            "VLM_MODELS_FOLDER", "./models", "Folder of checkpoints, seen as /models: VLM_CHECKPOINT=/models/NAME."
        ),
        Variable("BACKEND_PUBLISH", "127.0.0.1:9090", "Address and port that the backend is published on."),
        Variable("HF_HUB_OFFLINE", "", "1: never ask the hub, take what is in the cache."),
        Variable("HF_TOKEN", "", "For checkpoints that the hub does not give to everyone."),
    ),
    "Limits": (
        Variable("BACKEND_MEMORY", "8g", "Most memory of the backend."),
        Variable("BACKEND_CPUS", "0", "Most CPUs of the backend; 0: all."),
        Variable("WORKER_MEMORY", "8g", "Most memory of a worker."),
        Variable("WORKER_CPUS", "0", "Most CPUs of a worker; 0: all. Fewer than the machine has keeps serving quick."),
        Variable("REDIS_MEMORY", "512m", "Most memory of Redis."),
        Variable("LABEL_STUDIO_MEMORY", "4g", "Most memory of Label Studio."),
    ),
    "Several of them (compose.scale.yaml)": (
        Variable("BACKEND_REPLICAS", "2", "Backends behind the proxy, 16 at most."),
        Variable("WORKER_REPLICAS", "2", "Workers; each trains one project at a time."),
    ),
    "GPUs (compose.gpu.yaml)": (
        Variable("BACKEND_GPU", "0", "The backend's GPU: an index or a UUID."),
        Variable("WORKER_GPU", "0", "The workers' GPU."),
        Variable("BACKEND_GPU_MEMORY_FRACTION", "0.5", "The part of its memory that the backend may take."),
        Variable("WORKER_GPU_MEMORY_FRACTION", "0.5", "The part of its memory that a worker may take."),
    ),
}

HEAD = """\
# Settings of docker/compose.yaml. `make env` copies this file to docker/.env and fills in random secrets.
# A line that begins with "# NAME=" shows a default; take the "# " away to change it.
#
# Written by tools/env_example.py.
"""


def settings_variables() -> Iterator[Variable]:
    """The backend's and the worker's, in the order of the settings class."""
    for attribute, field in Settings.model_fields.items():
        name = variable_name(attribute)
        if name in FIXED:
            continue
        secret = "SecretStr" in str(field.annotation)
        default = IN_COMPOSE.get(attribute, "" if field.default is None else str(field.default))
        meaning = field.description or ""
        if secret or attribute == "basic_auth_user":
            meaning += " `make env` writes a random one." if secret else " `make env` sets it."
        yield Variable(name, default, meaning, active=secret or attribute in ("basic_auth_user", "checkpoint"))


def render() -> str:
    """The file's text."""
    sections = {**COMPOSE, "Backend and worker": tuple(settings_variables())}
    lines = [HEAD]
    for title, variables in sections.items():
        lines.append(f"# --- {title} " + "-" * max(3, 100 - len(title)))
        for variable in variables:
            lines += textwrap.wrap(
                variable.meaning, 110, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
            )
            lines.append(f"{'' if variable.active else '# '}{variable.name}={variable.default}")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(render(), end="")
