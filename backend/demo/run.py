"""`vlm demo` from start to end: a person's demo, and the unattended check."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from backend.demo.deployment import Deployment
from backend.demo.processes import DemoError, StoppedError, Supervisor, free_port, signals_as_exceptions
from backend.demo.project import PROJECT_TITLE, create_project, evaluation_scenes, find_project, pictures
from backend.demo.round_trip import print_round_trip, require_predictions, run_round_trip, served_version
from backend.demo.stack import Stack, StackOptions, start_stack
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.connect import connect_project
from backend.label_studio.errors import LabelStudioError

DEFAULT_DIR = Path(".demo")
_PORT, _BACKEND_PORT = 8080, 9090
_PICTURES, _TRAIN_AFTER = 32, 4
_CHECK_PICTURES, _CHECK_LEFT_ALONE, _CHECK_SCENES = 56, 8, 100
CHECK_CORRECTIONS = _CHECK_PICTURES - _CHECK_LEFT_ALONE
"""Annotations that a check makes."""


@dataclass(frozen=True)
class DemoOptions:
    """What `vlm demo` is asked for.

    Attributes:
        check: do the round trip unattended instead of waiting for a person.
        label_studio: the `label-studio` command; None looks for it.
        port: Label Studio's; None: 8080, for a check a free one.
        backend_port: the backend's; None: 9090, for a check a free one.
        data_dir: where everything is written; None: `.demo`, for a check a new directory inside it that is
            removed after success.
        checkpoint: what is served before anything is learned.
    """

    check: bool = False
    label_studio: Path | None = None
    port: int | None = None
    backend_port: int | None = None
    data_dir: Path | None = None
    checkpoint: str = "demo"


def run_demo(options: DemoOptions, say: Callable[[str], None] = print) -> int:
    """Run the demo until Ctrl-C, or the check until its table.

    Returns:
        Exit code: 0 after Ctrl-C and after a successful check, 1 where the check shows no success,
        128 + N after signal N.

    Raises:
        DemoError: something foreseen went wrong; everything that was started has ended.
    """
    say = _flushed(say)
    with signals_as_exceptions():
        try:
            return _check(options, say) if options.check else _show(options, say)
        except KeyboardInterrupt:
            say("\nStopped.")
            return 130 if options.check else 0
        except StoppedError as stopped:
            say(f"Stopped by {stopped}.")
            return 128 + stopped.number
        except OSError as error:
            raise DemoError(
                f"{error.filename or options.data_dir or DEFAULT_DIR}: {error.strerror or error}. Make room, mend the "
                "permissions, or choose another directory with DEMO_DIR (--data-dir)"
            ) from None


def _show(options: DemoOptions, say: Callable[[str], None]) -> int:
    """Start everything and wait for a person to end it."""
    data_dir = options.data_dir or DEFAULT_DIR
    ports = options.port or _PORT, options.backend_port or _BACKEND_PORT
    stack_options = _stack_options(options, data_dir, *ports, train_after=_TRAIN_AFTER)
    with _only_one(data_dir), Supervisor(data_dir / "logs", say) as supervisor:
        stack = start_stack(supervisor, stack_options, say)
        try:
            with stack.client() as client:
                project_id = find_project(client)
                if project_id is None:
                    say(f"Drawing {_PICTURES} pictures and uploading them to a new project")
                    project_id, _ = create_project(client, list(pictures(_PICTURES)))
                say("Connecting the backend and retrieving predictions")
                _pre_label(stack.deployment, client, project_id)
        except LabelStudioError as error:
            raise DemoError(f"Label Studio: {error}") from None
        say(_where_to_look(stack, project_id))
        supervisor.watch()
    return 0  # not reached: watching ends by Ctrl-C or an error


def _check(options: DemoOptions, say: Callable[[str], None]) -> int:
    """Do the round trip on fresh data and print its table."""
    started = time.monotonic()
    temporary = options.data_dir is None
    if options.data_dir is None:
        DEFAULT_DIR.mkdir(exist_ok=True)
        data_dir = Path(tempfile.mkdtemp(prefix="check-", dir=DEFAULT_DIR))
    else:
        data_dir = options.data_dir
    ports = options.port or free_port(), options.backend_port or free_port()
    # One training, of all corrections: what the first few alone would teach is not what is measured.
    stack_options = _stack_options(options, data_dir, *ports, train_after=CHECK_CORRECTIONS)
    succeeded = False
    try:
        with _only_one(data_dir), Supervisor(data_dir / "logs", say) as supervisor:
            stack = start_stack(supervisor, stack_options, say)
            with stack.client() as client:
                if find_project(client) is not None:
                    raise DemoError(f"{data_dir} holds an earlier demo; a check needs a new directory")
            succeeded = _round_trip(supervisor, stack.deployment, PROJECT_TITLE, say)
            say(f"{'The round trip works' if succeeded else 'The round trip failed'}, {_minutes(started)}")
    except LabelStudioError as error:
        raise DemoError(f"Label Studio: {error}") from None
    finally:
        if temporary and succeeded:
            shutil.rmtree(data_dir, ignore_errors=True)
        else:
            say(f"Logs and data are in {data_dir}")
    return 0 if succeeded else 1


def run_deployment_check(deployment: Deployment, say: Callable[[str], None] = print) -> int:
    """Do the round trip in a new project of a deployment that runs.

    The deployment's checkpoint must be the demo's, and it should start to train after as many annotations as are made,
    `CHECK_CORRECTIONS`: the first few alone teach other things.

    Returns:
        Exit code: 0 after a success, 1 where the table shows none.

    Raises:
        DemoError: something foreseen went wrong.
    """
    say, started = _flushed(say), time.monotonic()
    title = f"Check of {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    with tempfile.TemporaryDirectory() as logs, Supervisor(Path(logs), say) as supervisor:
        try:
            succeeded = _round_trip(supervisor, deployment, title, say)
        except LabelStudioError as error:
            raise DemoError(f"Label Studio: {error}") from None
    say(f"{'The round trip works' if succeeded else 'The round trip failed'}, {_minutes(started)}")
    return 0 if succeeded else 1


def _round_trip(supervisor: Supervisor, deployment: Deployment, title: str, say: Callable[[str], None]) -> bool:
    """The round trip in a new project, with its table; returns whether it shows a success."""
    with deployment.client() as client:
        say(f"Drawing {_CHECK_PICTURES} pictures and uploading them to a new project")
        project_id, tasks = create_project(client, list(pictures(_CHECK_PICTURES)), title=title)
        say("Connecting the backend and retrieving predictions")
        _pre_label(deployment, client, project_id)
        outcome = run_round_trip(
            supervisor,
            deployment,
            client,
            project_id,
            tasks,
            evaluation_scenes(_CHECK_SCENES),
            left_alone=_CHECK_LEFT_ALONE,
            say=say,
        )
    print_round_trip(outcome, _CHECK_SCENES)
    failures = outcome.failures()
    for failure in failures:
        say(f"not reached: {failure}")
    return not failures


def _pre_label(deployment: Deployment, client: LabelStudioClient, project_id: int) -> None:
    """Connect the backend and let Label Studio retrieve predictions for every picture."""
    connect_project(
        client,
        project_id,
        deployment.backend_url,
        basic_auth=deployment.basic_auth,
        webhook_secret=deployment.webhook_secret,
    )
    client.retrieve_predictions(project_id)
    # Label Studio says "retrieved" also where it dropped all of them.
    task_ids = [int(task["id"]) for task in client.tasks(project_id)]
    require_predictions(client, project_id, task_ids, version=served_version(client, project_id))


def _stack_options(
    options: DemoOptions, data_dir: Path, port: int, backend_port: int, *, train_after: int
) -> StackOptions:
    return StackOptions(data_dir, port, backend_port, options.label_studio, options.checkpoint, train_after)


def _where_to_look(stack: Stack, project_id: int) -> str:
    return f"""
  Open      http://localhost:{stack.options.port}/projects/{project_id}/data
  Sign in   {stack.credentials.email}
            {stack.credentials.password}

  Every picture already carries masks and a description: open one. The model was never shown a star: mark the
  stars of a dozen pictures, correct the rest and submit. Training starts by itself after every few; when a better
  version is there, select pictures and choose Actions > Retrieve Predictions.

  Status    http://localhost:{stack.options.backend_port}/
  Logs      {stack.options.data_dir / "logs"}
  Jobs      VLM_DATA_DIR={stack.vlm_dir} vlm jobs
  Versions  VLM_DATA_DIR={stack.vlm_dir} vlm versions

  Ctrl-C stops all of it; the next `make demo` goes on where this one ended. Remove {stack.options.data_dir} to
  start afresh.
"""


@contextlib.contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Hold a data directory for this demo alone.

    Raises:
        DemoError: another demo uses it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(data_dir / "demo.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(
                f"another demo runs in {data_dir}: stop it, or choose another directory with DEMO_DIR (--data-dir)"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _flushed(say: Callable[[str], None]) -> Callable[[str], None]:
    """Progress is seen at once, also through a pipe."""
    if say is not print:
        return say
    return lambda line: print(line, flush=True)


def _minutes(started: float) -> str:
    seconds = round(time.monotonic() - started)
    return f"{seconds // 60} min {seconds % 60:02d} s"
