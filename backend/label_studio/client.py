"""Label Studio's HTTP API, as far as the backend and the jobs need it.

One class, blocking, safe to share between threads. Answers are Label Studio's own JSON objects as plain dicts;
errors are those of `backend.label_studio.errors`. Calls that only read are tried again when Label Studio is
briefly away.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast

from backend.label_studio.errors import LabelStudioRejectedError, LabelStudioServerError
from backend.label_studio.task_filter import among
from backend.label_studio.transport import OTHER_SERVICE, Json, Transport, as_object

_ANNOTATED: Json = {
    "conjunction": "and",
    "items": [{"filter": "filter:tasks:total_annotations", "operator": "greater", "value": 0, "type": "Number"}],
}


class LabelStudioClient(Transport):
    """What Label Studio is asked and told; made, and closed, as `Transport` is."""

    # Projects ---------------------------------------------------------------------------------------------
    def greet(self) -> tuple[str, datetime | None]:
        """Label Studio's release, and its own time to the second where it tells; asked without the token."""
        response = self._request("GET", "/api/version/", None)
        release = as_object(self._read(response, "/api/version/"), "/api/version/").get("release", "unknown")
        try:
            return str(release), parsedate_to_datetime(response.headers["date"]).astimezone(UTC)
        except (KeyError, ValueError):
            return str(release), None

    def whoami(self) -> Json:
        """The token's user."""
        return self._get("/api/current-user/whoami")

    def project(self, project_id: int) -> Json:
        """One project, with `label_config` and `model_version`."""
        return self._get(f"/api/projects/{project_id}/")

    def projects(self) -> Iterator[Json]:
        """All projects that the user sees."""
        return self._pages("/api/projects/", {}, items="results", page_size=100)

    def create_project(self, title: str, label_config: str, **fields: Any) -> Json:
        """A new project."""
        return self._send("POST", "/api/projects/", {"title": title, "label_config": label_config, **fields})

    def update_project(self, project_id: int, **fields: Any) -> Json:
        """Change some of a project's fields."""
        return self._send("PATCH", f"/api/projects/{project_id}/", fields)

    def delete_project(self, project_id: int) -> None:
        """Delete a project with its tasks and annotations."""
        self._call("DELETE", f"/api/projects/{project_id}/")

    # Tasks, annotations, predictions ------------------------------------------------------------------------
    def import_tasks(self, project_id: int, tasks: Sequence[Mapping[str, Any]]) -> Json:
        """Add tasks given as `{"data": {...}}`."""
        return self._import(f"/api/projects/{project_id}/import", body=list(tasks))

    def upload_file(self, project_id: int, name: str, content: bytes, media_type: str) -> Json:
        """Upload one image; Label Studio makes a task of it."""
        return self._import(f"/api/projects/{project_id}/import", files={"file": (name, content, media_type)})

    def tasks(
        self,
        project_id: int,
        *,
        only_annotated: bool = False,
        page_size: int = 50,
        resolve_uri: bool = False,
        newest_first: bool = False,
    ) -> Iterator[Json]:
        """All tasks of a project with annotations and predictions, by id.

        Args:
            project_id: the project.
            only_annotated: leave out tasks without any annotation.
            page_size: tasks per request; brush masks make tasks large.
            resolve_uri: let Label Studio turn cloud addresses into its own; False keeps what was imported.
            newest_first: those that were changed last come first.
        """
        params: dict[str, Any] = {
            "project": project_id,
            "fields": "all",
            "ordering": "id",
            "resolve_uri": str(resolve_uri).lower(),
        }
        query: Json = {"filters": _ANNOTATED} if only_annotated else {}
        if newest_first:
            query["ordering"] = ["-tasks:updated_at"]
        if query:
            params["query"] = json.dumps(query)
        return self._pages("/api/tasks/", params, items="tasks", page_size=page_size)

    def annotated(self, project_id: int, fields: Sequence[str]) -> Iterator[Json]:
        """The tasks with annotations, skipped ones apart, by id, with these fields alone; cheap, but for large ones."""
        return self.matching_tasks(project_id, _ANNOTATED["items"], fields=fields)

    def tasks_by_id(self, project_id: int, ids: Sequence[int]) -> list[Json]:
        """Some tasks with their annotations and predictions, as far as they are there; at most some hundred ids."""
        params = {
            "project": project_id,
            "fields": "all",
            "ordering": "id",
            "page_size": max(1, len(ids)),
            "resolve_uri": "false",
            "query": json.dumps({"filters": {"conjunction": "and", "items": [among(ids)]}}),
        }
        return self._tasks_in(self._get("/api/tasks/", params)) if ids else []

    def newest_annotated(self, project_id: int) -> Json:
        """The annotated task that was changed last, and totals, in one small answer.

        Returns:
            `tasks`: at most one, without its annotations; `total`: annotated tasks; `total_annotations`: of all of
            them, without skipped ones.
        """
        query = {"filters": _ANNOTATED, "ordering": ["-tasks:updated_at"]}
        params = {"project": project_id, "page_size": 1, "resolve_uri": "false", "query": json.dumps(query)}
        return self._get("/api/tasks/", params)

    def task(self, task_id: int) -> Json:
        """One task with its annotations and predictions."""
        return self._get(f"/api/tasks/{task_id}/", {"resolve_uri": "false"})

    def task_predictions(self, task_id: int) -> list[Json]:
        """All predictions of a task, of every model version."""
        return self._list("/api/predictions/", {"task": task_id})

    def matching_tasks(
        self,
        project_id: int,
        conditions: Sequence[Mapping[str, Any]],
        *,
        fields: Sequence[str] = ("id",),
        page_size: int = 500,
    ) -> Iterator[Json]:
        """Tasks that meet all conditions, by id.

        Each page begins after the last id of the one before, so that none is missed when tasks stop to meet the
        conditions meanwhile.

        Args:
            project_id: the project.
            conditions: the Data Manager's filters, `{"filter": "filter:tasks:id", "operator", "type", "value"}`.
            fields: of the tasks; `id` must be among them. All of them take Label Studio ten times as long.
            page_size: tasks per request.
        """
        after = 0
        while True:
            beyond = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": after}
            query = {"filters": {"conjunction": "and", "items": [*conditions, beyond]}}
            params = {"project": project_id, "query": json.dumps(query), "page_size": page_size, **_quietly(fields)}
            found = self._tasks_in(self._get("/api/tasks/", params))
            yield from found
            if len(found) < page_size:
                return
            after = max(int(task["id"]) for task in found)

    def tasks_of_tab(self, project_id: int, tab: int, *, page_size: int = 500) -> Iterator[int]:
        """Ids of the tasks that a Data Manager tab shows, in its order.

        Args:
            project_id: the project.
            tab: the tab's id, as its address has it.
            page_size: tasks per request.
        """
        params = {"project": project_id, "view": tab, **_quietly(("id",))}
        return (int(task["id"]) for task in self._pages("/api/tasks/", params, items="tasks", page_size=page_size))

    def task_columns(self, project_id: int) -> dict[str, str]:
        """What tasks can be filtered by: the type of each column; a field of the data is named "data.<field>"."""
        columns = self._get("/api/dm/columns/", {"project": project_id}).get("columns")
        if not isinstance(columns, list):
            raise LabelStudioServerError(f"Label Studio's answer to /api/dm/columns/ holds no columns. {OTHER_SERVICE}")
        return {
            f"{column['parent']}.{column['id']}" if column.get("parent") else str(column["id"]): str(column["type"])
            for column in columns
        }

    def import_predictions(self, project_id: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        """Add predictions, all of them in one transaction; sent twice, they are there twice.

        Args:
            project_id: the project.
            predictions: each with `task`, `model_version`, `score` and `result`.

        Returns:
            How many were made. Label Studio leaves out, without a word, what does not fit the labelling config.
        """
        return int(self._import(f"/api/projects/{project_id}/import/predictions", body=list(predictions))["created"])

    def delete_prediction(self, prediction_id: int) -> None:
        """Delete a prediction."""
        self._call("DELETE", f"/api/predictions/{prediction_id}/")

    def create_annotation(self, task_id: int, result: Sequence[Mapping[str, Any]], **fields: Any) -> Json:
        """Annotate a task."""
        return self._send("POST", f"/api/tasks/{task_id}/annotations/", {"result": list(result), **fields})

    def update_annotation(self, annotation_id: int, **fields: Any) -> Json:
        """Change some of an annotation's fields."""
        return self._send("PATCH", f"/api/annotations/{annotation_id}/", fields)

    def delete_annotation(self, annotation_id: int) -> None:
        """Delete an annotation."""
        self._call("DELETE", f"/api/annotations/{annotation_id}/")

    def retrieve_predictions(self, project_id: int, task_ids: Sequence[int] | None = None) -> Json:
        """Let Label Studio ask the backend for predictions, as "Retrieve Predictions" does; waits for them.

        Args:
            project_id: the project.
            task_ids: the tasks; None: all.
        """
        selected: Json = (
            {"all": True, "excluded": []} if task_ids is None else {"all": False, "included": list(task_ids)}
        )
        body = {"selectedItems": selected, "ordering": [], "filters": {"conjunction": "and", "items": []}}
        path = f"/api/dm/actions?id=retrieve_tasks_predictions&project={project_id}"
        return self._send("POST", path, body)

    # ML backends and webhooks -----------------------------------------------------------------------------
    def ml_backends(self, project_id: int) -> list[Json]:
        """The project's connections to backends. Label Studio asks each for its health and version first."""
        return self._list("/api/ml/", {"project": project_id})

    def create_ml_backend(self, project_id: int, url: str, **fields: Any) -> Json:
        """Connect a backend. Label Studio calls its /health and /setup before it answers."""
        return self._send("POST", "/api/ml/", {"project": project_id, "url": url, **fields})

    def update_ml_backend(self, ml_backend_id: int, **fields: Any) -> Json:
        """Change a connection; `url` and `project` must be among the fields."""
        return self._send("PATCH", f"/api/ml/{ml_backend_id}", fields)

    def delete_ml_backend(self, ml_backend_id: int) -> None:
        """Remove a connection; its webhook stays."""
        self._call("DELETE", f"/api/ml/{ml_backend_id}")

    def try_ml_backend_url(self, project_id: int, url: str) -> None:
        """Whether Label Studio would take an address for a backend; nothing is created.

        Raises:
            LabelStudioForbiddenError: it blocks the address.
            LabelStudioError: it cannot find the host, or refuses the address.
        """
        self._try("/api/ml/", {"project": project_id, "url": url, "timeout": "on purpose no number"}, "timeout")

    def try_webhook_url(self, project_id: int, url: str) -> None:
        """The same for a webhook, which has a protection of its own."""
        self._try("/api/webhooks/", {"project": project_id, "url": url, "actions": ["ON_PURPOSE_NONE"]}, "actions")

    def train_ml_backend(self, ml_backend_id: int) -> None:
        """Press "Start Training"."""
        self._call("POST", f"/api/ml/{ml_backend_id}/train", body={})

    def webhooks(self, project_id: int) -> list[Json]:
        """The project's webhooks."""
        return self._list("/api/webhooks/", {"project": project_id})

    def create_webhook(self, project_id: int, url: str, **fields: Any) -> Json:
        """Add a webhook."""
        return self._send("POST", "/api/webhooks/", {"project": project_id, "url": url, **fields})

    def update_webhook(self, webhook_id: int, **fields: Any) -> Json:
        """Change a webhook."""
        return self._send("PATCH", f"/api/webhooks/{webhook_id}/", fields)

    def delete_webhook(self, webhook_id: int) -> None:
        """Remove a webhook."""
        self._call("DELETE", f"/api/webhooks/{webhook_id}/")

    def _try(self, path: str, body: Json, wrong: str) -> None:
        """Send what is wrong in one field on purpose: addresses are looked at all the same, and first."""
        try:
            created = self._send("POST", path, body)
        except LabelStudioRejectedError as error:
            if f'"{wrong}"' in str(error) and '"url"' not in str(error):
                return
            raise
        # A release that does not mind: take it back at once.
        self._call("DELETE", f"{path}{created['id']}/" if "webhooks" in path else f"{path}{created['id']}")

    def _tasks_in(self, answer: Json) -> list[Json]:
        found = answer.get("tasks")
        if not isinstance(found, list):
            raise LabelStudioServerError(f"Label Studio's answer to /api/tasks/ holds no tasks. {OTHER_SERVICE}")
        return cast("list[Json]", found)


def _quietly(fields: Sequence[str]) -> dict[str, str]:
    """For lists of tasks: these fields, addresses as they were imported, and no predictions asked of the backend for
    whatever is listed, as projects with `evaluate_predictions_automatically` do."""
    return {"include": ",".join(fields), "resolve_uri": "false", "review": "true"}
