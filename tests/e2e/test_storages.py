"""What a real Label Studio does with images in cloud storage, both kinds of tokens, and annotations that change."""

from __future__ import annotations

import io
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
from PIL import Image

from backend.demo.stack import Stack
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.images import ForbiddenAddressError, ImageConfig, ImageFetcher, ImageUnavailableError
from tests.backend.label_studio.web_server import WebServer
from training_jobs.annotation_state import Mark, Reading, has_news, stamps_of

pytestmark = pytest.mark.e2e

CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="red"/></BrushLabels></View>"""
KEY = "a folder/ä 1.png"


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (30, 20), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def bucket() -> Iterator[WebServer]:
    """As much of S3 as Label Studio and a signed address need; the picture is there under one key."""
    storage = WebServer()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        query = parse_qs(parts.query)
        signed = "AWS4-HMAC-SHA256" in (handler.headers.get("Authorization") or "") or bool(
            {"X-Amz-Signature", "Signature"} & set(query)
        )
        wanted = unquote(parts.path)
        body, status = b"", 200
        if not signed:
            status = 403
        elif "list-type" in query:
            body = b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><KeyCount>1</KeyCount>'
            body += f"<Contents><Key>{KEY}</Key><Size>9</Size></Contents></ListBucketResult>".encode()
        elif wanted == f"/pictures/{KEY}":
            body = png("red")
        elif wanted.strip("/") != "pictures":
            status = 404
        handler.send_response(status)
        handler.send_header("Content-Type", "image/png")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    storage.fallback = answer
    yield storage
    storage.close()


@pytest.fixture(scope="module")
def personal_token(client: LabelStudioClient) -> str:
    return str(client._send("POST", "/api/token/", {})["token"])


def with_storage(client: LabelStudioClient, bucket: WebServer, *, presign: bool) -> tuple[int, int]:
    """A project with a task in the bucket, and the task."""
    project_id = int(client.create_project("storage", CONFIG)["id"])
    storage: dict[str, Any] = {
        "project": project_id,
        "bucket": "pictures",
        "aws_access_key_id": "key",
        "aws_secret_access_key": "secret",
        "region_name": "eu-central-1",
        "s3_endpoint": bucket.url,
        "use_blob_urls": True,
        "presign": presign,
    }
    client._send("POST", "/api/storages/s3", storage)
    client.import_tasks(project_id, [{"data": {"image": f"s3://pictures/{KEY}"}}])
    (task,) = client.tasks(project_id)
    assert task["data"]["image"] == f"s3://pictures/{KEY}"
    return project_id, int(task["id"])


@pytest.mark.parametrize("presign", [True, False], ids=["signed address", "through Label Studio"])
def test_an_image_in_cloud_storage_is_fetched_through_label_studio(
    presign: bool, stack: Stack, client: LabelStudioClient, personal_token: str, bucket: WebServer, tmp_path: Path
) -> None:
    project_id, task_id = with_storage(client, bucket, presign=presign)
    for token in (stack.credentials.api_token, personal_token):
        config = ImageConfig(
            tmp_path, label_studio_url=stack.label_studio_url, allow_private_addresses=True, cache_bytes=0
        )
        with LabelStudioClient(stack.label_studio_url, token) as user:
            fetcher = ImageFetcher(config, user)
            for owner in ({"task_id": task_id}, {"project_id": project_id}):
                fetched = fetcher.fetch(f"s3://pictures/{KEY}", **owner)
                assert fetched.size_hw == (20, 30)
                assert fetched.image.getpixel((3, 3)) == (255, 0, 0)
            with pytest.raises(ImageUnavailableError, match="no storage connection for it"):
                fetcher.fetch("s3://elsewhere/a.png", task_id=task_id)
            with pytest.raises(ImageUnavailableError):
                fetcher.fetch("s3://pictures/absent.png", task_id=task_id)
    ours = [headers for _, path, headers in bucket.requests if quote(KEY) in path and "authorization" in headers]
    assert all(headers["authorization"].startswith("AWS4-HMAC-SHA256") for headers in ours)  # Label Studio's own


def test_a_storage_inside_a_private_network_is_refused_with_the_remedy(
    stack: Stack, client: LabelStudioClient, bucket: WebServer, tmp_path: Path
) -> None:
    _, task_id = with_storage(client, bucket, presign=True)
    asked = len(bucket.requests)
    fetcher = ImageFetcher(ImageConfig(tmp_path, label_studio_url=stack.label_studio_url), client)
    with pytest.raises(ForbiddenAddressError, match="VLM_ALLOW_PRIVATE_ADDRESSES=true"):
        fetcher.fetch(f"s3://pictures/{KEY}", task_id=task_id)
    assert len(bucket.requests) == asked


def test_an_access_token_that_is_refused_early_is_renewed(
    stack: Stack, client: LabelStudioClient, personal_token: str, tmp_path: Path
) -> None:
    project_id = int(client.create_project("uploads", CONFIG)["id"])
    client.upload_file(project_id, "a.png", png("lime"), "image/png")
    (task,) = client.tasks(project_id)
    with LabelStudioClient(stack.label_studio_url, personal_token) as user:
        fetcher = ImageFetcher(ImageConfig(tmp_path, label_studio_url=stack.label_studio_url, cache_bytes=0), user)
        assert fetcher.fetch(task["data"]["image"]).size_hw == (20, 30)
        assert user._tokens is not None
        assert user._tokens._access is not None
        user._tokens._access = user._tokens._access[:-4] + "AAAA"  # another signature, as after a change of its key
        assert fetcher.fetch(task["data"]["image"]).image.getpixel((3, 3)) == (0, 255, 0)


def test_what_is_new_since_a_reading(client: LabelStudioClient, tmp_path: Path) -> None:
    project_id = int(client.create_project("reconciled", CONFIG)["id"])
    client.import_tasks(project_id, [{"data": {"image": f"https://example.test/{number}.png"}} for number in range(4)])
    tasks = [int(task["id"]) for task in client.tasks(project_id)]

    def news() -> bool:
        return has_news(client, project_id, Mark.of(client, project_id), Reading.last(tmp_path))

    def read() -> None:
        mark = Mark.of(client, project_id)
        annotated = client.tasks(project_id, only_annotated=True)
        Reading(mark, {str(task["id"]): stamps_of(task) for task in annotated}).keep(tmp_path)
        assert not news()

    assert not news()
    first, second = (client.create_annotation(task_id, []) for task_id in tasks[:2])
    assert news()
    read()
    assert Mark.of(client, project_id) == Mark.of(client, project_id)
    assert (Mark.of(client, project_id).tasks, Mark.of(client, project_id).annotations) == (2, 2)
    # A prediction moves the time of its task, and a skipped task has no annotation that counts.
    before = Mark.of(client, project_id)
    client._send("POST", "/api/predictions/", {"task": tasks[0], "result": [], "model_version": "x"})
    client.create_annotation(tasks[2], [], was_cancelled=True)
    assert Mark.of(client, project_id) != before
    assert not news()
    client.update_annotation(int(first["id"]), result=[])
    assert news()
    read()
    client.delete_annotation(int(second["id"]))
    assert news()
    read()
    client.create_annotation(tasks[3], [])
    assert news()
