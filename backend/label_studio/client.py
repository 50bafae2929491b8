"""Label Studio's HTTP API, as far as the backend and the jobs need it.

One class, blocking, safe to share between threads. Answers are Label Studio's own JSON objects as plain dicts;
errors are those of `backend.label_studio.errors`. Calls that only read are tried again when Label Studio is
briefly away. Nothing here logs a payload or a token.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, cast
from urllib.parse import urlsplit

import httpx

from backend.label_studio.errors import (
    LabelStudioAuthError,
    LabelStudioError,
    LabelStudioForbiddenError,
    LabelStudioNotFoundError,
    LabelStudioRejectedError,
    LabelStudioServerError,
    LabelStudioUnreachableError,
)
from backend.label_studio.tokens import TokenSource

Json = dict[str, Any]

_RETRY_WAITS_S = (0.3, 1.0)
_AWAY = (502, 503, 504)
_SAID_CHARS = 500
_ANNOTATED = {
    "conjunction": "and",
    "items": [{"filter": "filter:tasks:total_annotations", "operator": "greater", "value": 0, "type": "Number"}],
}


class LabelStudioClient:
    """Calls one Label Studio as one user.

    Args:
        base_url: Label Studio's address, like http://localhost:8080 (with its path where it has one).
        api_key: personal access token or legacy token; None calls without one.
        timeout_s: seconds for connecting, and for each wait for the answer.
        transport: what carries the requests; for tests and for proxies.
        sleep: how to wait between tries.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare; nothing is sent yet."""
        self.base_url = base_url.rstrip("/")
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=self.base_url,
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            transport=transport,
            headers={"Accept": "application/json", "User-Agent": "label-studio-vlm-backend"},
        )
        self._tokens = TokenSource(api_key, self._exchange) if api_key else None

    def __enter__(self) -> LabelStudioClient:
        """Return the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def authorization(self) -> str | None:
        """The `Authorization` header for a call outside this class, to this Label Studio only.

        Raises:
            LabelStudioError: a personal access token could not be exchanged.
        """
        return None if self._tokens is None else self._tokens.header()

    def renew_authorization(self, refused: str) -> bool:
        """Note that a header from `authorization` was answered with 401.

        Args:
            refused: the header's value.

        Returns:
            Whether `authorization` may give a better one now; False for tokens that cannot be exchanged.
        """
        return self._tokens is not None and self._tokens.renew(refused)

    # Projects ---------------------------------------------------------------------------------------------
    def greet(self) -> tuple[str, datetime | None]:
        """Label Studio's release, and its own time to the second where it tells; asked without the token."""
        response = self._request("GET", "/api/version/", None)
        release = _object(self._read(response, "/api/version/"), "/api/version/").get("release", "unknown")
        try:
            return str(release), parsedate_to_datetime(response.headers["date"]).astimezone(UTC)
        except (KeyError, ValueError):
            return str(release), None

    @property
    def token_kind(self) -> str:
        """What the API key is, for people: it is told from its form, Label Studio is not asked."""
        if self._tokens is None:
            return "no token"
        return "personal access token" if self._tokens.is_personal else "legacy token"

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
        return self._send("POST", f"/api/projects/{project_id}/import", list(tasks))

    def upload_file(self, project_id: int, name: str, content: bytes, media_type: str) -> Json:
        """Upload one image; Label Studio makes a task of it."""
        path = f"/api/projects/{project_id}/import"
        return _object(self._call("POST", path, files={"file": (name, content, media_type)}), path)

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
            raise LabelStudioServerError(
                f"Label Studio's answer to /api/dm/columns/ holds no columns. {_OTHER_SERVICE}"
            )
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
        return int(self._send("POST", f"/api/projects/{project_id}/import/predictions", list(predictions))["created"])

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

    # Carrying ---------------------------------------------------------------------------------------------
    def _get(self, path: str, params: Mapping[str, Any] | None = None) -> Json:
        return _object(self._call("GET", path, params=params), path)

    def _list(self, path: str, params: Mapping[str, Any]) -> list[Json]:
        answer = self._call("GET", path, params=params)
        if isinstance(answer, Mapping) and isinstance(answer.get("results"), list):
            answer = answer["results"]
        if not isinstance(answer, list):
            raise LabelStudioServerError(f"Label Studio's answer to {path} is no list. {_OTHER_SERVICE}")
        return cast("list[Json]", answer)

    def _send(self, method: str, path: str, body: Any) -> Json:
        return _object(self._call(method, path, body=body), path)

    def _tasks_in(self, answer: Json) -> list[Json]:
        found = answer.get("tasks")
        if not isinstance(found, list):
            raise LabelStudioServerError(f"Label Studio's answer to /api/tasks/ holds no tasks. {_OTHER_SERVICE}")
        return cast("list[Json]", found)

    def _pages(self, path: str, params: Mapping[str, Any], *, items: str, page_size: int) -> Iterator[Json]:
        page = 1
        while True:
            try:
                answer = self._get(path, {**params, "page": page, "page_size": page_size})
            except LabelStudioNotFoundError:
                # A page past the end: tasks were deleted while we read.
                if page == 1:
                    raise
                return
            found = answer.get(items)
            if not isinstance(found, list):
                raise LabelStudioServerError(f"Label Studio's answer to {path} holds no {items}. {_OTHER_SERVICE}")
            yield from found
            if len(found) < page_size:
                return
            page += 1

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        files: Any = None,
    ) -> Any:
        """One call, with its tries: again after a refused access token, and for reads when nobody answers."""
        waits = iter(_RETRY_WAITS_S if method == "GET" else ())
        renewed = False
        while True:
            header = self.authorization()
            try:
                response = self._request(method, path, header, params=params, body=body, files=files)
            except LabelStudioUnreachableError:
                wait = next(waits, None)
                if wait is None:
                    raise
                self._sleep(wait)
                continue
            if response.status_code == 401 and header and not renewed:
                renewed = True
                if self.renew_authorization(header):
                    continue
            if response.status_code in _AWAY:
                wait = next(waits, None)
                if wait is not None:
                    self._sleep(wait)
                    continue
            return self._read(response, path)

    def _request(
        self, method: str, path: str, header: str | None, *, params: Any = None, body: Any = None, files: Any = None
    ) -> httpx.Response:
        headers = {"Authorization": header} if header else {}
        try:
            return self._http.request(method, path, params=params, json=body, files=files, headers=headers)
        except httpx.TimeoutException:
            raise LabelStudioUnreachableError(
                f"Label Studio at {self.base_url} did not answer {_shown(path)} in time. Is it overloaded?"
            ) from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise LabelStudioUnreachableError(
                f"Label Studio at {self.base_url} cannot be reached ({error}). "
                "Start it, or set LABEL_STUDIO_URL to its address as this machine sees it"
            ) from None

    def _read(self, response: httpx.Response, path: str) -> Any:
        status = response.status_code
        if status < 300:
            if status == 204 or not response.content:
                return {}
            try:
                return response.json()
            except ValueError:
                raise LabelStudioServerError(
                    f"{self.base_url} answers {_shown(path)} with something other than JSON. {_OTHER_SERVICE}",
                    status=status,
                ) from None
        if status < 400:
            target = urlsplit(response.headers.get("location", ""))
            where = f"{target.scheme}://{target.netloc.rpartition('@')[2]}" if target.netloc else target.path
            raise LabelStudioRejectedError(
                f"Label Studio at {self.base_url} redirects {_shown(path)} to {where}. "
                "Set LABEL_STUDIO_URL to the address that answers itself",
                status=status,
            )
        raise self._error(response, path)

    def _error(self, response: httpx.Response, path: str) -> LabelStudioError:
        status, said = response.status_code, _said(response)
        shown = f"{response.request.method} {_shown(path)}"
        if status == 401:
            if self._tokens is None:
                remedy = "Set LABEL_STUDIO_API_KEY to a personal access token (Account & Settings)"
            elif self._tokens.is_personal:
                remedy = "Create a new personal access token (Account & Settings) and set LABEL_STUDIO_API_KEY"
            else:
                remedy = (
                    "Legacy tokens are off by default: use a personal access token (Account & Settings), or allow "
                    "legacy tokens in the organization's settings"
                )
            return LabelStudioAuthError(f"Label Studio refuses the token for {shown}: {said}. {remedy}", status=status)
        if status == 403:
            return LabelStudioForbiddenError(f"Label Studio forbids {shown}: {said}", status=status)
        if status == 404:
            return LabelStudioNotFoundError(
                f"Label Studio knows nothing at {shown} for this user: {said}. Check the id and the token's user",
                status=status,
            )
        if status >= 500:
            return LabelStudioServerError(f"Label Studio failed at {shown} with {status}: {said}", status=status)
        return LabelStudioRejectedError(f"Label Studio does not accept {shown} ({status}): {said}", status=status)

    def _exchange(self, personal_token: str) -> str:
        """Trade a personal access token for an access token."""
        path = "/api/token/refresh/"
        response = self._request("POST", path, None, body={"refresh": personal_token})
        if response.status_code == 401:
            raise LabelStudioAuthError(
                f"Label Studio does not accept the personal access token: {_said(response)}. Create a new one "
                "(Account & Settings) and set LABEL_STUDIO_API_KEY",
                status=401,
            )
        access = _object(self._read(response, path), path).get("access")
        if not isinstance(access, str):
            raise LabelStudioServerError(f"Label Studio's answer to {path} holds no access token. {_OTHER_SERVICE}")
        return access


_OTHER_SERVICE = "Is LABEL_STUDIO_URL the address of Label Studio?"


def _quietly(fields: Sequence[str]) -> dict[str, str]:
    """For lists of tasks: these fields, addresses as they were imported, and no predictions asked of the backend for
    whatever is listed, as projects with `evaluate_predictions_automatically` do."""
    return {"include": ",".join(fields), "resolve_uri": "false", "review": "true"}


def _object(answer: Any, path: str) -> Json:
    if not isinstance(answer, dict):
        raise LabelStudioServerError(f"Label Studio's answer to {_shown(path)} is no object. {_OTHER_SERVICE}")
    return answer


def _shown(path: str) -> str:
    return path.partition("?")[0]


def _said(response: httpx.Response) -> str:
    """What Label Studio gives as the reason, in one line."""
    try:
        answer = response.json()
    except ValueError:
        return f"HTTP {response.status_code}"
    if isinstance(answer, dict):
        detail = str(answer.get("detail") or answer.get("error") or "").rstrip(".")
        errors = answer.get("validation_errors")
        if errors:
            listed = json.dumps(errors, ensure_ascii=False)
            return f"{detail}: {listed}"[:_SAID_CHARS] if detail else listed[:_SAID_CHARS]
        if detail:
            return detail[:_SAID_CHARS]
    return json.dumps(answer, ensure_ascii=False)[:_SAID_CHARS]
