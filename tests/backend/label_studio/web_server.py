"""A web server whose answers a test makes up."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

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

            do_GET = do_HEAD = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815

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
