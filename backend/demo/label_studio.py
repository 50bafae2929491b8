"""A Label Studio of the demo's own: its command, its data, its sign-in.

It lives in an environment of its own (its dependencies do not fit beside ours) and is run like an installation
of a single user: SQLite, its development server, bound to 127.0.0.1. The password, the API token and the
webhook secret are random, made once per data directory, and readable by the user alone.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from backend.demo.processes import Child, DemoError, Supervisor, child_environment

LABEL_STUDIO_VERSION = "1.23.2"
_FIRST_START_S = 600.0


@dataclass(frozen=True)
class Credentials:
    """How to sign in to one demo's Label Studio.

    Attributes:
        email: the only user's name.
        password: for the sign-in page.
        api_token: legacy API token, 40 hex digits.
        webhook_secret: what the backend demands of webhooks.
    """

    email: str
    password: str
    api_token: str
    webhook_secret: str

    @staticmethod
    def load_or_create(path: Path) -> Credentials:
        """Read a data directory's credentials, or make random ones and keep them (mode 600).

        Raises:
            DemoError: the file is there but cannot be used.
        """
        if path.exists():
            try:
                return Credentials(**json.loads(path.read_text()))
            except (OSError, ValueError, TypeError) as error:
                raise DemoError(
                    f"{path} cannot be read ({type(error).__name__}): remove {path.parent} to start afresh"
                ) from None
        made = Credentials(
            email="demo@localhost.localdomain",
            password=secrets.token_urlsafe(12),
            api_token=secrets.token_hex(20),
            webhook_secret=secrets.token_hex(16),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(made), file, indent=1)
        return made


def find_label_studio(given: Path | None) -> Path:
    """The `label-studio` command to run.

    Args:
        given: what the user named; None looks in `.venv-label-studio` here, beside this environment, and on PATH.

    Raises:
        DemoError: there is none.
    """
    if given is not None:
        if os.access(given, os.X_OK) and given.is_file():
            return given.absolute()
        raise DemoError(f"{given} is not a program. `make venv-label-studio` installs Label Studio beside this project")
    beside = Path(sys.prefix).parent / ".venv-label-studio" / "bin" / "label-studio"
    for candidate in (Path(".venv-label-studio/bin/label-studio"), beside):
        if os.access(candidate, os.X_OK):
            return candidate.absolute()
    found = shutil.which("label-studio")
    if found:
        return Path(found)
    raise DemoError(
        "Label Studio is not installed. `make demo` does it; or: python3 -m venv .venv-label-studio && "
        f".venv-label-studio/bin/pip install label-studio=={LABEL_STUDIO_VERSION}, then --label-studio PATH"
    )


def start_label_studio(
    supervisor: Supervisor, executable: Path, data_dir: Path, port: int, credentials: Credentials
) -> Child:
    """Start Label Studio; `wait_for_label_studio` waits until it answers.

    Args:
        supervisor: watches it.
        executable: the `label-studio` command.
        data_dir: its database and uploads; made on the first start.
        port: where it listens, on 127.0.0.1.
        credentials: its only user's.

    Raises:
        DemoError: it cannot be started.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    environment = child_environment(
        keep=(),
        # Secrets go through the environment: a command line can be read by every user of the machine.
        LABEL_STUDIO_USERNAME=credentials.email,
        LABEL_STUDIO_PASSWORD=credentials.password,
        LABEL_STUDIO_USER_TOKEN=credentials.api_token,
        LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN="true",
        LABEL_STUDIO_BASE_DATA_DIR=str(data_dir.absolute()),
        LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK="true",
        # The backend listens on this machine. With the first alone Label Studio would say "Connected" and yet
        # send no webhook.
        ML_BLOCK_LOCAL_IP="false",
        SSRF_PROTECTION_ENABLED="false",
        # Nothing leaves the machine.
        COLLECT_ANALYTICS="false",
        LATEST_VERSION_CHECK="false",
        SENTRY_DSN="",
        FRONTEND_SENTRY_DSN="",
        PYTHONUNBUFFERED="1",
    )
    command = [str(executable), "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)]
    return supervisor.start(
        "Label Studio",
        [*command, "--agree-fix-sqlite"],
        env=environment,
        cwd=data_dir,
        remedy=f"This demo is made for Label Studio {LABEL_STUDIO_VERSION}; `make venv-label-studio` installs it.",
    )


def wait_for_label_studio(supervisor: Supervisor, url: str) -> None:
    """Wait until Label Studio answers: about 45 s on its first start, 5 s later.

    Raises:
        DemoError: it ends, or does not answer in time.
    """
    supervisor.wait_for(
        "Label Studio to answer (its first start makes a database)",
        lambda: answers(f"{url}/health"),
        timeout_s=_FIRST_START_S,
    )


def answers(url: str) -> bool | None:
    """True when `url` gives a page, None when it does not (yet)."""
    try:
        return True if httpx.get(url, timeout=5.0, trust_env=False).status_code == 200 else None
    except httpx.HTTPError:
        return None
