"""A real Label Studio, a real Redis, a backend and a worker, started once for all end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backend.demo.processes import Supervisor, free_port
from backend.demo.project import create_project, evaluation_scenes, pictures
from backend.demo.round_trip import RoundTrip, run_round_trip, served_version
from backend.demo.stack import Stack, StackOptions, start_stack
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.connect import connect_project
from tests.e2e.harness import LEFT_ALONE, PICTURES, SCENES, PreLabelled, label_studio_executable


@pytest.fixture(scope="session")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    with Supervisor(tmp_path_factory.mktemp("logs")) as running:
        yield running


@pytest.fixture(scope="session")
def stack(supervisor: Supervisor, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    data_dir = tmp_path_factory.mktemp("stack")
    options = StackOptions(
        data_dir, free_port(), free_port(), label_studio_executable(), train_after=PICTURES - LEFT_ALONE
    )
    return start_stack(supervisor, options)


@pytest.fixture(scope="session")
def client(stack: Stack) -> Iterator[LabelStudioClient]:
    with stack.client() as connected:
        yield connected


@pytest.fixture(scope="session")
def pre_labelled(stack: Stack, client: LabelStudioClient) -> PreLabelled:
    project_id, tasks = create_project(client, list(pictures(PICTURES)))
    assert len(tasks) == PICTURES
    connect_project(client, project_id, stack.backend_url, webhook_secret=stack.credentials.webhook_secret)
    client.retrieve_predictions(project_id)
    version = served_version(client, project_id)
    assert version is not None
    predictions = {int(task["id"]): list(task["predictions"]) for task in client.tasks(project_id)}
    return PreLabelled(project_id, tasks, predictions, version)


@pytest.fixture(scope="session")
def round_trip(supervisor: Supervisor, stack: Stack, client: LabelStudioClient, pre_labelled: PreLabelled) -> RoundTrip:
    return run_round_trip(
        supervisor,
        stack.deployment,
        client,
        pre_labelled.project_id,
        pre_labelled.tasks,
        evaluation_scenes(SCENES),
        left_alone=LEFT_ALONE,
    )
