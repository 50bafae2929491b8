"""A Label Studio in memory, as far as connecting and examining go."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx


def jwt(kind: str, number: int, life_s: float = 300.0) -> str:
    """A token that looks like Label Studio's own; the signature is a number."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    head = {"alg": "HS256", "typ": "JWT"}
    return f"{part(head)}.{part({'token_type': kind, 'iat': 1000, 'exp': 1000 + life_s, 'jti': number})}.{number}"


class FakeLabelStudio:
    """Label Studio's API as far as connecting goes, with the behaviour that 1.23.2 showed.

    A new connection makes its own webhook for all events; deleting it leaves the webhook; a changed title takes the
    project's model version along; the connection's state and version are what the backend says when it is listed.
    """

    LEGACY = "0123456789abcdef0123456789abcdef01234567"
    PERSONAL = jwt("refresh", 1, 1e9)

    def __init__(self) -> None:
        self.projects: dict[int, dict[str, Any]] = {
            1: {"id": 1, "title": "p", "model_version": "", "show_collab_predictions": True}
        }
        self.backends: list[dict[str, Any]] = []
        self.hooks: list[dict[str, Any]] = []
        self.tasks: list[dict[str, Any]] = []
        self.stored_versions: set[str] = set()
        # What answers at the backends' addresses: (model version or the reason for none, user and password).
        self.reachable: dict[str, tuple[str, tuple[str, str] | None]] = {}
        self.blocks_connections = self.blocks_webhooks = False
        self.release, self.clock_ahead = "1.23.2", timedelta(0)
        self.good_access: set[str] = set()
        self.calls: list[tuple[str, str]] = []
        self.authorizations: list[str] = []
        self.refreshes = 0
        self.before: list[Callable[[httpx.Request], httpx.Response | None]] = []
        self._ids = itertools.count(1)

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.answer)

    @property
    def changes(self) -> list[tuple[str, str]]:
        return [call for call in self.calls if call[0] != "GET" and "token" not in call[1]]

    def expire(self) -> None:
        self.good_access.clear()

    def answer(self, request: httpx.Request) -> httpx.Response:
        path, method = request.url.path, request.method
        self.calls.append((method, path))
        for intervene in self.before:
            response = intervene(request)
            if response is not None:
                return response
        body = json.loads(request.content) if request.content else {}
        if path == "/api/token/refresh/":
            if body.get("refresh") != self.PERSONAL:
                return self._error(401, "Token is invalid")
            self.refreshes += 1
            access = jwt("access", 100 + self.refreshes)
            self.good_access.add(access)
            return httpx.Response(200, json={"access": access})
        if path == "/api/version/":
            date = format_datetime(datetime.now(UTC) + self.clock_ahead, usegmt=True)
            return httpx.Response(200, json={"release": self.release}, headers={"date": date})
        header = request.headers.get("authorization", "")
        self.authorizations.append(header)
        good = header == f"Token {self.LEGACY}" or header.removeprefix("Bearer ") in self.good_access
        if not good:
            return self._error(401, "Invalid token." if header else "Authentication credentials were not provided.")
        try:
            return self._route(method, path, dict(request.url.params), body)
        except KeyError:
            return self._error(404, "No Project matches the given query.")

    def _route(self, method: str, path: str, params: dict[str, str], body: dict[str, Any]) -> httpx.Response:
        kind, _, number = path.removeprefix("/api/").strip("/").partition("/")
        if kind == "current-user":
            return httpx.Response(200, json={"id": 1, "email": "owner@example.com"})
        if kind == "projects" and not number:
            return httpx.Response(200, json={"results": list(self.projects.values())})
        if kind == "projects":
            project = self.projects[int(number)]
            if method == "PATCH":
                wanted = body.get("model_version", "")
                titles = {item["title"] for item in self.backends}
                if wanted and wanted not in titles | self.stored_versions:
                    return self._error(400, "Validation error", {"model_version": ["Model version doesn't exist"]})
                project.update(body)
            return httpx.Response(200, json=project)
        if kind == "tasks":
            page, size = int(params["page"]), int(params["page_size"])
            found = self.tasks[(page - 1) * size : page * size]
            if not found and page > 1:
                return self._error(404, "Invalid page.")
            return httpx.Response(200, json={"tasks": found, "total": len(self.tasks)})
        if kind == "ml":
            return self._ml(method, number, params, body)
        if kind == "webhooks":
            return self._webhooks(method, number, params, body)
        return self._error(404, "Not found.")

    def _ml(self, method: str, number: str, params: dict[str, str], body: dict[str, Any]) -> httpx.Response:
        if method == "GET":
            for item in self.backends:
                self._ask(item)
            mine = [self._shown(b) for b in self.backends if b["project"] == int(params["project"])]
            return httpx.Response(200, json=mine)
        if method == "POST":
            if self.blocks_connections:
                return self._error(403, "URL resolves to a reserved network address (block: 127.0.0.0/8)")
            if not isinstance(body.get("timeout", 1.0), float):
                return self._error(400, "Validation error", {"timeout": ["A valid number is required."]})
            item = {"id": next(self._ids), "title": "default", "auth_method": "NONE", "description": "", **body}
            item.setdefault("extra_params", None)
            refused = self._refused(item)
            if refused:
                return refused
            self.backends.append(item)
            url = item["url"].rstrip("/") + "/webhook"
            if self.blocks_webhooks:  # the connection stays behind
                return self._error(403, "URL resolves to a reserved network address (block: 127.0.0.0/8)")
            if all(hook["url"] != url for hook in self.hooks):
                self._new_hook({"url": url, "project": item["project"]})
            self._ask(item)
            project = self.projects[item["project"]]
            project["model_version"] = project["model_version"] or item["title"]
            return httpx.Response(201, json=self._shown(item))
        (item,) = (b for b in self.backends if b["id"] == int(number))
        project = self.projects[item["project"]]
        if method == "DELETE":
            self.backends.remove(item)
            if project["model_version"] == item["title"]:
                project["model_version"] = ""
            return httpx.Response(204)
        if "url" not in body or "project" not in body:
            return self._error(500, "MLBackend.healthcheck_() missing 1 required positional argument: 'url'")
        if body.get("auth_method") == "BASIC_AUTH" and not {"basic_auth_user", "basic_auth_pass"} <= set(body):
            return self._error(400, "Validation error", {"non_field_errors": ["Authentication username and password"]})
        changed = {**item, **body}
        if body.get("basic_auth_pass") == "":
            changed["basic_auth_pass"] = item.get("basic_auth_pass")
        refused = self._refused(changed)
        if refused:
            return refused
        if changed["title"] != item["title"] and project["model_version"] == item["title"]:
            project["model_version"] = changed["title"]
        item.update(changed)
        self._ask(item)
        return httpx.Response(200, json=self._shown(item))

    def _webhooks(self, method: str, number: str, params: dict[str, str], body: dict[str, Any]) -> httpx.Response:
        if method == "GET":
            return httpx.Response(200, json=[h for h in self.hooks if h["project"] == int(params["project"])])
        if method == "POST":
            if self.blocks_webhooks:
                return self._error(403, "URL resolves to a reserved network address (block: 127.0.0.0/8)")
            unknown = [action for action in body.get("actions", []) if not action.startswith("ANNOTATION")]
            if unknown:
                errors = {"actions": {"0": [f'"{unknown[0]}" is not a valid choice.']}}
                return self._error(400, "Validation error", errors)
            return httpx.Response(201, json=self._new_hook(body))
        (hook,) = (h for h in self.hooks if h["id"] == int(number))
        if method == "DELETE":
            self.hooks.remove(hook)
            return httpx.Response(204)
        hook.update(body)
        return httpx.Response(200, json=hook)

    def _new_hook(self, fields: dict[str, Any]) -> dict[str, Any]:
        hook = {"id": next(self._ids), "send_payload": True, "send_for_all_actions": True, "headers": {}}
        hook |= {"is_active": True, "actions": [], **fields}
        self.hooks.append(hook)
        return hook

    def _says(self, item: dict[str, Any]) -> tuple[str, str]:
        """State and version, or state and error."""
        there = self.reachable.get(item["url"].rstrip("/"))
        if there is None:
            return "DI", "Can't connect to ML backend, health check failed. <a href='x'>Learn more</a>"
        version, credentials = there
        sent = (item.get("basic_auth_user"), item.get("basic_auth_pass"))
        if credentials is not None and (item["auth_method"] != "BASIC_AUTH" or sent != credentials):
            return "ER", "Able to connect to ML Server, but authentication parameters were either not provided"
        if version.startswith("!"):
            return "ER", f"it doesn't look like a valid ML backend. Reason: {version[1:]}"
        return "CO", version

    def _ask(self, item: dict[str, Any]) -> None:
        item["state"], said = self._says(item)
        item["readable_state"] = {"CO": "Connected", "DI": "Disconnected", "ER": "Error"}[item["state"]]
        item["error_message"] = None if item["state"] == "CO" else said
        if item["state"] == "CO":
            item["model_version"] = said

    def _refused(self, item: dict[str, Any]) -> httpx.Response | None:
        state, said = self._says(item)
        return None if state == "CO" else self._error(400, "Validation error", {"non_field_errors": [said]})

    @staticmethod
    def _shown(item: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in item.items() if name != "basic_auth_pass"}

    @staticmethod
    def _error(status: int, detail: str, errors: Any = None) -> httpx.Response:
        return httpx.Response(status, json={"status_code": status, "detail": detail, "validation_errors": errors})
