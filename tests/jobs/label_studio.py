"""A small Label Studio: a project with image tasks and annotations, answered over HTTP on a free port."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from label_studio_sdk.converter.brush import mask2rle
from numpy.typing import NDArray
from PIL import Image

CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="red"/><Label value="blue"/></BrushLabels></View>"""
TOKEN = "a-legacy-token"

Json = dict[str, Any]


def brush(label: str, mask: NDArray[np.bool_], **changes: Any) -> Json:
    """A brush region as the editor stores it."""
    return {
        "id": f"r{label}",
        "from_name": "brush",
        "to_name": "image",
        "type": "brushlabels",
        "original_width": mask.shape[1],
        "original_height": mask.shape[0],
        "image_rotation": 0,
        "value": {"format": "rle", "rle": mask2rle(mask.astype(np.uint8) * 255), "brushlabels": [label]},
        **changes,
    }


class LabelStudio:
    """The data; change it at any time."""

    def __init__(self, project_id: int = 7, config: str = CONFIG) -> None:
        self.project_id = project_id
        self.config = config
        self.images: dict[int, bytes] = {}
        self.annotations: dict[int, list[Json]] = {}
        self.predictions: dict[int, list[Json]] = {}
        self.updated_at: dict[int, str] = {}
        self.failing: set[int] = set()
        self.status = 200
        self.url = ""
        self.asked = threading.Event()
        """Set when tasks are asked for."""
        self.free = threading.Event()
        """Tasks are answered while it is set, as it is at first."""
        self.free.set()
        self.backends: list[Json] = []
        """The project's connections."""
        self.backends_listed = 0
        """How often they were asked for."""
        self.calls: list[str] = []
        """Paths that were asked for, in order."""
        self._next = 100

    def add_task(self, image: NDArray[np.uint8]) -> int:
        """A task with that RGB image; its id."""
        task_id = len(self.images) + 1
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        self.images[task_id] = buffer.getvalue()
        self.annotations[task_id] = []
        self.touch(task_id)
        return task_id

    def touch(self, task_id: int) -> None:
        """What Label Studio does to a task whose annotations or predictions change."""
        self._next += 1
        self.updated_at[task_id] = f"2026-01-01T00:00:00.{self._next:06d}Z"

    def change(self, annotation: Json) -> None:
        """Submit an annotation again."""
        task_id = next(task_id for task_id, found in self.annotations.items() if annotation in found)
        self.touch(task_id)
        annotation["updated_at"] = self.updated_at[task_id]

    def delete(self, annotation: Json) -> None:
        """Delete an annotation."""
        task_id = next(task_id for task_id, found in self.annotations.items() if annotation in found)
        self.annotations[task_id].remove(annotation)
        self.touch(task_id)

    def annotate(self, task_id: int, result: Sequence[Mapping[str, Any]], **fields: Any) -> Json:
        """Add an annotation with the next id and a later time than all before."""
        self._next += 1
        annotation: Json = {
            "id": self._next,
            "result": list(result),
            "was_cancelled": False,
            "ground_truth": False,
            "completed_by": 1,
            "updated_at": f"2026-01-01T00:00:00.{self._next:06d}Z",
            **fields,
        }
        self.annotations[task_id].append(annotation)
        self.updated_at[task_id] = annotation["updated_at"]
        return annotation

    def answer(self, path: str, query: Mapping[str, list[str]]) -> tuple[int, str, bytes]:
        """Status, media type and body for a GET."""
        if self.status != 200:
            return self.status, "text/plain", b"away"
        if path == f"/api/projects/{self.project_id}/":
            return _json({"id": self.project_id, "label_config": self.config})
        if path.rstrip("/") == "/api/ml":
            self.backends_listed += 1
            return _json(self.backends)
        if path == "/api/tasks/":
            return self._tasks(query)
        if path.startswith("/data/upload/"):
            number = int(path.rsplit("/", 1)[1].removesuffix(".png"))
            if number in self.failing:
                return 503, "text/plain", b"storage away"
            return 200, "image/png", self.images[number]
        return 404, "application/json", b'{"detail": "Not found."}'

    def accept(self, path: str, body: Any) -> tuple[int, str, bytes]:
        """Status, media type and body for a POST; this one takes nothing."""
        return 404, "application/json", b'{"detail": "Not found."}'

    def listed(self, number: int) -> Json:
        """A task without its annotations."""
        counted = sum(not item.get("was_cancelled") for item in self.annotations[number])
        return {
            "id": number,
            "data": {"image": f"/data/upload/{number}.png"},
            "updated_at": self.updated_at[number],
            "total_annotations": counted,
            "cancelled_annotations": len(self.annotations[number]) - counted,
        }

    def _tasks(self, query: Mapping[str, list[str]]) -> tuple[int, str, bytes]:
        with_annotations = query.get("fields") == ["all"]
        if with_annotations:
            self.asked.set()
            self.free.wait(60)
            if self.status != 200:  # it went away meanwhile
                return self.status, "text/plain", b"away"
        size, page = int(query["page_size"][0]), int(query.get("page", ["1"])[0])
        asked = json.loads(query["query"][0])
        tasks: list[Json] = []
        total = 0
        for number, found in self.annotations.items():
            counted = sum(not item.get("was_cancelled") for item in found)
            if not all(_holds(item, number, counted) for item in asked.get("filters", {}).get("items", [])):
                continue
            total += counted
            task = self.listed(number)
            drawn = {"annotations": found, "predictions": self.predictions.get(number, [])}
            tasks.append({**task, **drawn} if with_annotations else task)
        if asked.get("ordering") == ["-tasks:updated_at"]:
            tasks.sort(key=lambda task: str(task["updated_at"]), reverse=True)
        chosen = tasks[size * (page - 1) : size * page]
        if page > 1 and not chosen:
            return 404, "application/json", b"{}"
        return _json({"tasks": chosen, "total": len(tasks), "total_annotations": total})


def _holds(condition: Json, task_id: int, annotations: int) -> bool:
    """Whether a task meets one of the Data Manager's filters, of those that are asked."""
    value = {"filter:tasks:id": task_id, "filter:tasks:total_annotations": annotations}[condition["filter"]]
    operators = {"greater": lambda one, other: one > other, "in_list": lambda one, other: one in other}
    return bool(operators[condition["operator"]](value, condition["value"]))


def _json(value: Any) -> tuple[int, str, bytes]:
    return 200, "application/json", json.dumps(value).encode()


@contextmanager
def serve(label_studio: LabelStudio) -> Iterator[LabelStudio]:
    """Answer on a free port of the loopback address; sets `url`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            label_studio.calls.append(parts.path)
            if self.headers.get("Authorization") != f"Token {TOKEN}":
                status, media_type, body = 401, "application/json", b'{"detail": "Invalid token."}'
            else:
                status, media_type, body = label_studio.answer(parts.path, parse_qs(parts.query))
            self._send(status, media_type, body)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(*label_studio.accept(urlsplit(self.path).path, body))

        def _send(self, status: int, media_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    label_studio.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield label_studio
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def picture(seed: int, *, size: int = 48) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.bool_]]]:
    """Grey noise with a red, a blue or both rectangles, and their masks."""
    generator = np.random.default_rng(seed)
    image = generator.integers(90, 160, (size, size, 3), dtype=np.uint8)
    masks: dict[str, NDArray[np.bool_]] = {}
    wanted = [("red",), ("blue",), ("red", "blue")][seed % 3]
    for label, left in zip(wanted, (0, size // 2), strict=False):
        x, y = left + int(generator.integers(0, 6)), int(generator.integers(0, size // 2))
        width, height = int(generator.integers(12, 17)), int(generator.integers(12, 20))
        mask = np.zeros((size, size), dtype=bool)
        mask[y : y + height, x : x + width] = True
        image[mask] = (230, 20, 20) if label == "red" else (20, 20, 230)
        masks[label] = mask
    return image, masks


def corrected_project(count: int, *, first: int = 0) -> LabelStudio:
    """A project with `count` pictures, each with a true annotation."""
    label_studio = LabelStudio()
    for seed in range(first, first + count):
        image, masks = picture(seed)
        label_studio.annotate(label_studio.add_task(image), [brush(label, mask) for label, mask in masks.items()])
    return label_studio
