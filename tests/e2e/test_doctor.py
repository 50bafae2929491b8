"""`vlm doctor` on a real Label Studio: nothing to say of a healthy project, and planted faults are found."""

from __future__ import annotations

import pytest

from backend.demo.project import create_project, pictures
from backend.demo.stack import Stack
from backend.doctor.command import examine_all
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.connect import connect_project
from backend.settings import Settings

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def project_id(stack: Stack, client: LabelStudioClient) -> int:
    project_id, _ = create_project(client, list(pictures(1, first_seed=3_700_000)), title="For the doctor")
    connect_project(client, project_id, stack.backend_url, webhook_secret=stack.credentials.webhook_secret)
    client.retrieve_predictions(project_id)
    return project_id


def problems(stack: Stack, project_id: int) -> list[tuple[str, str]]:
    settings = Settings(
        checkpoint="demo",
        data_dir=stack.vlm_dir,
        port=stack.options.backend_port,
        label_studio_url=stack.label_studio_url,
        label_studio_api_key=stack.credentials.api_token,  # type: ignore[arg-type]  # pydantic makes a secret of it
        webhook_secret=stack.credentials.webhook_secret,  # type: ignore[arg-type]
    )
    found = list(examine_all(settings, [project_id]))
    assert all(finding.remedy for finding in found if finding.state == "problem")
    return [(item.check, item.said) for item in found if item.state in ("problem", "not checked")]


def test_a_healthy_project_has_no_finding_and_stays_as_it_is(
    stack: Stack, client: LabelStudioClient, project_id: int
) -> None:
    before = (client.ml_backends(project_id), client.webhooks(project_id))
    assert problems(stack, project_id) == []
    after = (client.ml_backends(project_id), client.webhooks(project_id))
    for old, new in zip(before, after, strict=True):
        assert [item["id"] for item in old] == [item["id"] for item in new]


def test_planted_faults_are_found(stack: Stack, client: LabelStudioClient, project_id: int) -> None:
    (hook,) = client.webhooks(project_id)
    client.update_webhook(int(hook["id"]), **{**hook, "headers": {}})
    ghost = client.create_webhook(project_id, "http://127.0.0.1:1/webhook", send_for_all_actions=True)
    client.update_project(project_id, show_collab_predictions=False)
    assert sorted(check for check, _ in problems(stack, project_id)) == [
        "ghost webhook",
        "predictions shown",
        "webhook secret",
    ]
    client.delete_webhook(int(ghost["id"]))
    client.delete_webhook(int(hook["id"]))
    assert sorted(check for check, _ in problems(stack, project_id)) == ["predictions shown", "webhook"]
    connect_project(client, project_id, stack.backend_url, webhook_secret=stack.credentials.webhook_secret)
    assert problems(stack, project_id) == []
    (backend,) = client.ml_backends(project_id)
    client.delete_ml_backend(int(backend["id"]))
    assert [check for check, _ in problems(stack, project_id)] == ["connection"]
    connect_project(client, project_id, stack.backend_url, webhook_secret=stack.credentials.webhook_secret)
