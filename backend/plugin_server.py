"""label-studio-ml's own server over `backend.plugin.VLMBackend`, as `backend/_wsgi.py` starts it.

    label-studio-ml start backend -p 9090          # in a checkout
    gunicorn --workers 1 --threads 8 backend._wsgi:app

1.0.9 knows neither credentials nor a limit of bodies, so `Guard` stands before it. Settings come from the environment,
as for `vlm serve`.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from backend.api.auth import SECRET_HEADER, Gate
from backend.api.errors import ApiError, BadRequestError, TooLargeError
from backend.logs import configure_logging
from backend.plugin import flask_app, host
from backend.settings import Settings, load_settings

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]

_LOAD_S = 3600.0
_STATUS = {400: "400 Bad Request", 401: "401 Unauthorized", 413: "413 Content Too Large"}
_SECRET_VARIABLE = "HTTP_" + SECRET_HEADER.upper().replace("-", "_")


class Guard:
    """WSGI middleware: who may call, by the rules of `backend.api.auth`, and how much they may send."""

    def __init__(self, app: WsgiApp, settings: Settings) -> None:
        """Stand before `app`."""
        self._app = app
        self._gate = Gate(settings)
        self._max_bytes = settings.request_max_bytes

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        try:
            self._check(environ)
        except ApiError as error:
            return _json(start_response, _STATUS[error.status], {"error": str(error)}, error.headers)
        return self._answer(environ, start_response)

    def _answer(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """The app's answer, but for a failure's: 1.0.9 sends the traceback to whoever asked."""
        begun: list[Any] = []

        def begin(status: str, headers: list[tuple[str, str]], *more: Any) -> Callable[[bytes], Any]:
            begun[:] = [status, headers]
            return _unused

        content = self._app(environ, begin)
        status, headers = begun
        if status.startswith("5"):
            return _json(start_response, status, {"error": "an unexpected error; the server's log has the details"})
        start_response(status, headers)
        return content

    def _check(self, environ: Environ) -> None:
        path, authorization = environ.get("PATH_INFO", ""), environ.get("HTTP_AUTHORIZATION")
        if path in ("/", "/health"):
            return
        if path == "/webhook":
            secret = environ.get(_SECRET_VARIABLE)
            self._gate.check_webhook(authorization, secret)
            self._gate.check_webhook(authorization, secret, action=_action(self._body(environ)))
        else:
            self._gate.check(authorization)
            self._body(environ)

    def _body(self, environ: Environ) -> bytes:
        """The whole body, which the app can read again."""
        try:
            length = int(environ.get("CONTENT_LENGTH") or 0)
        except ValueError:
            raise BadRequestError("Content-Length is not a number") from None
        if length > self._max_bytes:
            raise TooLargeError(f"the body is over {self._max_bytes} bytes: send fewer tasks")
        body = bytes(environ["wsgi.input"].read(length)) if length > 0 else b""
        environ["wsgi.input"] = io.BytesIO(body)
        environ.pop("wsgi.input_terminated", None)
        return body


def make_app(settings: Settings | None = None, model_dir: str | None = None) -> Any:
    """label-studio-ml's app over our class, with the guard before it; the model begins to load.

    Args:
        settings: default those of the environment.
        model_dir: where 1.0.9 writes each event that it gets; default `label-studio-ml` in the data directory.

    Raises:
        SettingsError: the environment holds values that cannot be used.
    """
    settings = settings or load_settings()
    configure_logging(settings.log_level, settings.log_format, secrets=settings.secrets)
    app = flask_app(model_dir or str(settings.data_dir / "label-studio-ml"))
    app.wsgi_app = Guard(app.wsgi_app, settings)
    host().store.start()
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it, with the options that people know from other backends."""
    settings = load_settings()
    parser = argparse.ArgumentParser(description="The backend under label-studio-ml; `vlm serve` is the better server.")
    parser.add_argument("-p", "--port", type=int, default=settings.port, help="PORT (%(default)s)")
    parser.add_argument("--host", default=settings.host, help="VLM_HOST (%(default)s); 0.0.0.0: every interface")
    parser.add_argument("--log-level", default=settings.log_level, help="LOG_LEVEL (%(default)s)")
    parser.add_argument("--model-dir", default=None, help="where label-studio-ml 1.0.9 writes the events that it gets")
    parser.add_argument("--check", action="store_true", help="load the model, say whether it could be, and end")
    options = parser.parse_args(argv)
    app = make_app(load_settings(log_level=options.log_level), options.model_dir)
    if options.check:
        store = host().store
        store.wait(_LOAD_S)
        print(store.state.reason or f"{store.state.model} is ready")
        return 0 if store.state.status == "ready" else 1
    with suppress(KeyboardInterrupt):
        app.run(host=options.host, port=options.port, threaded=True)
    return 0


def _json(
    start_response: StartResponse, status: str, body: Mapping[str, str], headers: Mapping[str, str] | None = None
) -> list[bytes]:
    content = json.dumps(body).encode()
    own = {"Content-Type": "application/json", "Content-Length": str(len(content))}
    start_response(status, list((own | dict(headers or {})).items()))
    return [content]


def _unused(_: bytes) -> None:
    raise RuntimeError("WSGI's write is not supported: Flask does not use it")


def _action(body: bytes) -> str | None:
    with suppress(ValueError, RecursionError):
        event = json.loads(body)
        if isinstance(event, dict):
            return str(event.get("action"))
    raise BadRequestError("the body is not a JSON object")
