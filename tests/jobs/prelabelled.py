"""A small Label Studio that takes predictions, twice where they are sent twice."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from tests.jobs.label_studio import Json, LabelStudio, _json, picture


class PrelabelLabelStudio(LabelStudio):
    """Tasks without annotations at first; `imported` is every prediction that came."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.imported: list[Json] = []
        self.imports = 0
        self.before_import: Callable[[], None] = lambda: None
        """Called when an import has arrived, before it is stored."""
        self.stored = threading.Event()
        """Set by the first import."""
        self._lock = threading.Lock()
        for seed in range(tasks):
            self.add_task(picture(seed)[0])

    def versions_of(self, task_id: int) -> list[str]:
        return [str(p["model_version"]) for p in self.imported if p["task"] == task_id]

    def twice(self) -> dict[tuple[int, str], int]:
        """Tasks with more than one prediction of a version."""
        found = Counter((int(p["task"]), str(p["model_version"])) for p in self.imported)
        return {key: count for key, count in found.items() if count > 1}

    def answer(self, path: str, query: Mapping[str, list[str]]) -> tuple[int, str, bytes]:
        if path == "/api/dm/columns/" and self.status == 200:
            columns = [(name, "Number") for name in ("id", "total_annotations", "total_predictions")]
            columns.append(("predictions_model_versions", "List"))
            return _json({"columns": [{"id": name, "type": kind} for name, kind in columns]})
        if path != "/api/tasks/" or "include" not in query or self.status != 200:
            return super().answer(path, query)
        self.asked.set()
        self.free.wait(60)
        items = json.loads(query["query"][0])["filters"]["items"]
        found = [number for number in sorted(self.images) if all(self._meets(number, item) for item in items)]
        fields = query["include"][0].split(",")
        tasks = [self.listed(n) for n in found[: int(query["page_size"][0])]]
        return _json({"tasks": [{name: task[name] for name in fields} for task in tasks]})

    def accept(self, path: str, body: Any) -> tuple[int, str, bytes]:
        if self.status != 200:
            return self.status, "text/plain", b"away"
        if path != f"/api/projects/{self.project_id}/import/predictions":
            return super().accept(path, body)
        self.before_import()
        if not {int(item["task"]) for item in body} <= set(self.images):
            return 400, "application/json", b'{"detail": "no such task"}'
        with self._lock:
            self.imports += 1
            self.imported += body
        self.stored.set()
        return 201, "application/json", json.dumps({"created": len(body)}).encode()

    def _meets(self, number: int, item: Json) -> bool:
        column, operator, value = item["filter"].removeprefix("filter:tasks:"), item["operator"], item["value"]
        if column == "predictions_model_versions":
            has = any(value[0] in version for version in self.versions_of(number))
            return has if operator == "contains" else not has
        counts = {"id": number, "total_annotations": len(self.annotations[number])}
        actual = counts.get(column, len(self.versions_of(number)))
        if operator == "in_list":
            return actual in value
        return {
            "equal": actual == value,
            "greater": actual > value,
            "greater_or_equal": actual >= value,
            "less_or_equal": actual <= value,
        }[str(operator)]
