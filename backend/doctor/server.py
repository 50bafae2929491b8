"""Checks of the running server, asked over HTTP as Label Studio asks it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

import httpx

from backend.doctor.findings import Finding, Subject
from backend.label_studio.connection import SECRET_HEADER, shown
from backend.settings import Settings

SERVER = Subject("server")

_NO_EVENT = "VLM_DOCTOR"
"""An action that the server acknowledges and does nothing about."""


def check_server(settings: Settings, http: httpx.Client, url: str) -> Iterator[Finding]:
    """Whether a server answers, has its model, and wants what these settings say.

    Args:
        settings: that it should run with.
        http: without authentication of its own.
        url: where this machine reaches it.
    """
    remedy = "start `vlm serve` with these settings, or set VLM_BACKEND_URL to where it runs"
    try:
        health = http.get(f"{url}/health").json()
        model = str(health["model"])
    except httpx.HTTPError as error:
        yield SERVER.problem("server", f"nothing answers at {shown(url)} ({type(error).__name__})", remedy)
        return
    except (ValueError, KeyError, TypeError):
        yield SERVER.problem("server", f"something else answers at {shown(url)}", remedy)
        return
    if model == "ready":
        yield SERVER.ok("server", f"it answers at {shown(url)} and has its model")
    elif model == "loading":
        yield SERVER.skipped("server", f"it answers at {shown(url)}, but is still loading its model: ask again")
    else:
        yield SERVER.problem(
            "server",
            f"it answers at {shown(url)}, but cannot load its model: {_reason(http, url, settings)}",
            "see the finding about the checkpoint, and the server's log; it tries again by itself",
        )
    yield from _check_credentials(settings, http, url)
    yield from _check_secret(settings, http, url)


def _check_credentials(settings: Settings, http: httpx.Client, url: str) -> Iterator[Finding]:
    try:
        answer = http.get(f"{url}/status", auth=settings.basic_auth)
        status = answer.json() if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError) as error:
        yield SERVER.problem("password", f"/status does not answer ({type(error).__name__})", "see the server's log")
        return
    if answer.status_code == 401:
        yield SERVER.problem(
            "password",
            "the server refuses BASIC_AUTH_USER and BASIC_AUTH_PASS of these settings",
            "run the doctor with the server's settings, or start the server anew with these",
        )
        return
    running, installed = str(status.get("version")), importlib.metadata.version("label-studio-vlm-backend")
    if running != installed:
        yield SERVER.problem(
            "release", f"release {running} is running, {installed} is installed", "start the server anew"
        )
    yield SERVER.ok("password", "it takes the credentials" if settings.basic_auth else "it asks for no password")


def _check_secret(settings: Settings, http: httpx.Client, url: str) -> Iterator[Finding]:
    secret = settings.webhook_secret
    headers = {SECRET_HEADER: secret.get_secret_value()} if secret else {}
    if secret is None and settings.basic_auth is None:
        return
    try:
        # As an annotation's event comes: without Basic auth. START_TRAINING alone may come without the secret.
        status = http.post(f"{url}/webhook", json={"action": _NO_EVENT}, headers=headers).status_code
    except httpx.HTTPError as error:
        yield SERVER.problem("secret", f"/webhook does not answer ({type(error).__name__})", "see the server's log")
        return
    if status == 401 and secret is not None:
        yield SERVER.problem(
            "secret",
            "the server refuses VLM_WEBHOOK_SECRET of these settings",
            "run the doctor with the server's settings, or start the server anew with these",
        )
    elif status != 401:
        yield SERVER.ok("secret", "it takes the secret that webhooks carry")


def _reason(http: httpx.Client, url: str, settings: Settings) -> str:
    try:
        model = http.get(f"{url}/status", auth=settings.basic_auth).json()["model"]
        return str(model.get("reason") or "no reason given")
    except (httpx.HTTPError, ValueError, KeyError, AttributeError):
        return "its log says why"
