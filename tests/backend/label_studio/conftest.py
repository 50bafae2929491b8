from __future__ import annotations

import base64
import contextlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import httpx
import hypothesis
import pytest

# How long one example takes says more about the machine's other work than about the code.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

Behaviour = Callable[[BaseHTTPRequestHandler], None]


class WebServer:
    """A server on this machine whose paths behave as the test says; remembers what it was asked."""

    def __init__(self) -> None:
        self.routes: dict[str, Behaviour] = {}
        self.fallback: Behaviour | None = None
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.requests.append((self.command, self.path, headers))
                behaviour = outer.routes.get(urlsplit(self.path).path, outer.fallback)
                if behaviour is None:
                    self.send_error(404)
                    return
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    behaviour(self)

            do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def paths(self) -> list[str]:
        return [path for _, path, _ in self.requests]

    def serve(self, path: str, body: bytes, status: int = 200, **headers: str) -> None:
        def behaviour(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

        self.routes[path] = behaviour

    def redirect(self, path: str, location: str, status: int = 302) -> None:
        self.serve(path, b"", status, Location=location)


@pytest.fixture
def web() -> Iterator[WebServer]:
    server = WebServer()
    yield server
    server.close()


@pytest.fixture
def other_web() -> Iterator[WebServer]:
    server = WebServer()
    yield server
    server.close()


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
        if kind == "version":
            return httpx.Response(200, json={"release": "1.23.2"})
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


@pytest.fixture
def label_studio() -> FakeLabelStudio:
    return FakeLabelStudio()
