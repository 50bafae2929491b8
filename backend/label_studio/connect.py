"""Connecting a project of Label Studio to this backend, so that predictions and corrections flow.

`connect_project` brings a project into the wanted state whatever state it is in, says what it changed, and
changes nothing when it is run again. What Label Studio 1.23 needs, as observed:

- one ML backend entry. Only a project's first entry is used.
- the entry's *title* equal to the model version. Label Studio takes live predictions when the project's
  `model_version` is the title of its backend, and shows scores (and samples by them) when it is the version of
  the stored predictions: with this title it is both. When a new version is published the title lags behind;
  predictions stay live all the same, and `refresh_version` brings the scores back.
- one webhook, for the annotation events only. Label Studio makes one by itself, for all events and without our
  secret, and leaves it behind when the entry is deleted.

Neither secrets nor passwords are shown or logged. A password cannot be read back: it is written again when it
was given and Label Studio is not connected, or the user changed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from backend.label_studio.client import Json, LabelStudioClient
from backend.label_studio.errors import (
    LabelStudioError,
    LabelStudioForbiddenError,
    LabelStudioRejectedError,
)
from backend.versions import read_version_name

SECRET_HEADER = "X-VLM-Webhook-Secret"
WEBHOOK_ACTIONS = ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED")
# How an entry is recognised after its address or title changed.
DESCRIPTION = "Masks and tags from text prompts (label-studio-vlm-backend)"
_FIRST_TITLE = "label-studio-vlm-backend"
_CONNECTED = "CO"


class ConnectError(LabelStudioError):
    """The project could not be connected; the message names the setting to change."""


class NotReadyError(ConnectError):
    """The backend does not answer Label Studio, or not yet for this project."""

    temporary = True


# Names of hosts, the first with letters of any script.
_LABEL = re.compile(r"[^\W_](?:(?:[^\W_]|-){0,61}[^\W_])?")
_TOP_LABEL = re.compile(r"xn--[a-z0-9]{1,59}|(?!-)(?:[^\W\d_]|-){2,63}(?<!-)")


@dataclass(frozen=True)
class ConnectReport:
    """What connecting did.

    Attributes:
        ml_backend_id: Label Studio's id of the connection.
        webhook_id: its id of the webhook.
        model_version: the version that the backend reports for this project.
        changes: one sentence for each change; empty when all was right already.
        warnings: what keeps predictions from arriving although all of this is right.
    """

    ml_backend_id: int
    webhook_id: int
    model_version: str
    changes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass
class _Diary:
    """What happened so far."""

    changes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def connect_project(
    client: LabelStudioClient,
    project_id: int,
    backend_url: str,
    *,
    title: str | None = None,
    basic_auth: tuple[str, str] | None = None,
    webhook_secret: str | None = None,
) -> ConnectReport:
    """Connect a project, or bring its connection into order.

    Args:
        client: who may change the project.
        project_id: the project.
        backend_url: this backend's address as Label Studio reaches it, like http://127.0.0.1:9090.
        title: name of the connection in Label Studio; None: the model version, which makes scores show.
        basic_auth: user and password that the backend wants; None: none.
        webhook_secret: what the backend wants in `X-VLM-Webhook-Secret`; None: no header.

    Returns:
        What was changed and what to mind.

    Raises:
        ConnectError: Label Studio blocks or cannot reach the address, or the backend is not ready.
        LabelStudioError: any other failed call.
        ValueError: `backend_url` is no http(s) address.
    """
    backend_url = _checked_url(backend_url)
    diary = _Diary()
    client.project(project_id)  # a wrong id or token is named before anything is changed
    entry = _ensure_backend(client, project_id, backend_url, title, basic_auth, diary)
    entry = _ensure_title(client, entry, title, diary)
    _ensure_project(client, project_id, str(entry["title"]), diary)
    webhook_id = _ensure_webhook(client, project_id, backend_url, webhook_secret, diary)
    if title is not None and title != entry.get("model_version"):
        diary.warnings.append(
            "with a title of its own the Data Manager shows no scores; leave --title out and the title follows the "
            "model version"
        )
    return ConnectReport(
        ml_backend_id=int(entry["id"]),
        webhook_id=webhook_id,
        model_version=str(entry.get("model_version") or ""),
        changes=tuple(diary.changes),
        warnings=tuple(diary.warnings),
    )


def refresh_version(client: LabelStudioClient, project_id: int) -> str | None:
    """Tell Label Studio of a version that was published since, so that its scores show.

    Changes the title of our connection only where it was a version of ours, never one that an owner chose.

    Args:
        client: who may change the project.
        project_id: the project.

    Returns:
        The version that Label Studio knows now; None where the project has no connection of ours.

    Raises:
        LabelStudioError: a failed call.
    """
    # Listing makes Label Studio ask the backend, so that `model_version` is fresh.
    entry = next((item for item in client.ml_backends(project_id) if item.get("description") == DESCRIPTION), None)
    if entry is None:
        return None
    if _is_version(str(entry.get("title") or "")):
        # Label Studio moves the project's `model_version` along where it was the old title.
        entry = _ensure_title(client, entry, None, _Diary())
    return str(entry.get("model_version") or "") or None


def _ensure_backend(
    client: LabelStudioClient,
    project_id: int,
    backend_url: str,
    title: str | None,
    basic_auth: tuple[str, str] | None,
    diary: _Diary,
) -> Json:
    """One entry with the right address and credentials, as Label Studio sees it afterwards."""
    entries = client.ml_backends(project_id)
    ours = [item for item in entries if _same_url(item.get("url"), backend_url)]
    ours += [item for item in entries if item not in ours and item.get("description") == DESCRIPTION]
    wanted: dict[str, Any] = {
        "url": backend_url,
        "is_interactive": True,
        "description": DESCRIPTION,
        "auth_method": "BASIC_AUTH" if basic_auth else "NONE",
        "basic_auth_user": basic_auth[0] if basic_auth else "",
    }
    secret = {"basic_auth_pass": basic_auth[1]} if basic_auth else {}
    if not ours:
        entry = _asked(
            lambda: client.create_ml_backend(project_id, **wanted, **secret, title=title or _FIRST_TITLE), backend_url
        )
        diary.changes.append(f"connected the project to {backend_url}")
    else:
        entry = ours[0]
        for extra in ours[1:]:
            client.delete_ml_backend(int(extra["id"]))
            diary.changes.append(f"removed a second connection to this backend ({_shown(extra.get('url'))})")
            _remove_webhooks(client, project_id, str(extra.get("url")), backend_url, diary)
        differs = [name for name, value in wanted.items() if (entry.get(name) or "") != (value or "")]
        # Stays False on a connection that works; the password itself cannot be compared.
        password_unsure = bool(basic_auth) and entry.get("state") != _CONNECTED
        if differs or password_unsure:
            old_url = str(entry.get("url"))
            fields = {**wanted, **secret}
            entry = _asked(
                lambda: client.update_ml_backend(int(entry["id"]), project=project_id, **fields), backend_url
            )
            what = ", ".join(name.replace("_", " ") for name in differs) or "password"
            diary.changes.append(f"updated the connection ({what})")
            _remove_webhooks(client, project_id, old_url, backend_url, diary)
    first = entries[0] if entries else entry
    if int(first["id"]) != int(entry["id"]) and first not in ours:
        diary.warnings.append(
            f'Label Studio uses only the first backend of a project, which is "{first.get("title")}" at '
            f"{_shown(first.get('url'))}; remove it (Settings > Model) or this one is never asked"
        )
    if entry.get("state") != _CONNECTED:
        said = _plain(str(entry.get("error_message") or "")) or str(entry.get("readable_state"))
        raise NotReadyError(
            f"Label Studio is not connected to {backend_url}: {said}. Check that `vlm serve` runs there and wants "
            "the user and password that were given"
        )
    return entry


def _ensure_title(client: LabelStudioClient, entry: Json, title: str | None, diary: _Diary) -> Json:
    wanted = title or str(entry.get("model_version") or "") or _FIRST_TITLE
    if entry.get("title") == wanted:
        return entry
    # Without url and project Label Studio answers 500; it checks the connection with what is sent.
    fields: dict[str, Any] = {
        name: entry.get(name) for name in ("url", "project", "auth_method", "basic_auth_user", "extra_params")
    }
    if fields["auth_method"] == "BASIC_AUTH":
        fields["basic_auth_pass"] = ""  # means: keep it
    updated = _asked(lambda: client.update_ml_backend(int(entry["id"]), **fields, title=wanted), str(entry.get("url")))
    diary.changes.append(f'titled the connection "{wanted}"')
    return updated


def _ensure_project(client: LabelStudioClient, project_id: int, title: str, diary: _Diary) -> None:
    """Predictions shown to annotators, and taken from our connection."""
    project = client.project(project_id)
    fields: dict[str, Any] = {}
    if not project.get("show_collab_predictions"):
        fields["show_collab_predictions"] = True
        diary.changes.append("turned on predictions for annotators (show_collab_predictions)")
    before = str(project.get("model_version") or "")
    if before != title:
        fields["model_version"] = title
        was = f', before "{before}"' if before else ""
        diary.changes.append(f'set the project to predictions of "{title}"{was}')
    if fields:
        client.update_project(project_id, **fields)


def _ensure_webhook(
    client: LabelStudioClient, project_id: int, backend_url: str, secret: str | None, diary: _Diary
) -> int:
    """Exactly one webhook to us, for annotation events, carrying the secret."""
    url = f"{backend_url}/webhook"
    hooks = client.webhooks(project_id)
    ours = [hook for hook in hooks if _same_url(hook.get("url"), url)]
    # Ours under an address that this backend had before: nothing else knows the header.
    ghosts = [hook for hook in hooks if hook not in ours and _header_of(hook) is not None]
    for ghost in [*ours[1:], *ghosts]:
        client.delete_webhook(int(ghost["id"]))
        diary.changes.append(f"removed a left-over webhook to {_shown(ghost.get('url'))}")
    headers = {SECRET_HEADER: secret} if secret else {}
    wanted: dict[str, Any] = {
        "url": url,
        "send_payload": True,
        "send_for_all_actions": False,
        "is_active": True,
        "actions": list(WEBHOOK_ACTIONS),
    }
    if not ours:
        created = _asked(lambda: client.create_webhook(project_id, **wanted, headers=headers), backend_url)
        diary.changes.append(f"created the webhook to {url}")
        return int(created["id"])
    hook = ours[0]
    others = {
        name: value for name, value in (hook.get("headers") or {}).items() if name.lower() != SECRET_HEADER.lower()
    }
    wanted["headers"] = {**others, **headers}
    differs = [
        name
        for name, value in wanted.items()
        if (sorted(hook.get(name) or []) != sorted(value) if name == "actions" else hook.get(name) != value)
    ]
    if differs:
        _asked(lambda: client.update_webhook(int(hook["id"]), **wanted), backend_url)
        diary.changes.append(f"updated the webhook ({', '.join(name.replace('_', ' ') for name in differs)})")
    return int(hook["id"])


def _remove_webhooks(
    client: LabelStudioClient, project_id: int, old_backend_url: str, backend_url: str, diary: _Diary
) -> None:
    """Remove the webhooks of a connection that is no more: Label Studio would go on calling them."""
    if _same_url(old_backend_url, backend_url):
        return
    for hook in client.webhooks(project_id):
        if _same_url(hook.get("url"), f"{old_backend_url.rstrip('/')}/webhook"):
            client.delete_webhook(int(hook["id"]))
            diary.changes.append(f"removed a left-over webhook to {_shown(hook.get('url'))}")


def _asked(call: Any, backend_url: str) -> Json:
    """Do a call in which Label Studio checks our address; explain what it says about it."""
    try:
        answer: Json = call()
    except (LabelStudioForbiddenError, LabelStudioRejectedError) as error:
        raise _explained(error, backend_url) from None
    return answer


def _explained(error: LabelStudioError, backend_url: str) -> LabelStudioError:
    said = _plain(str(error))
    host = urlsplit(backend_url).hostname or ""
    if re.search(r"reserved|private|local(host)? (ip|url|address)|ssrf|block", said, re.IGNORECASE):
        return ConnectError(
            f"Label Studio blocks addresses in private networks, and {host} is one. Start Label Studio with "
            "ML_BLOCK_LOCAL_IP=false (for the connection) and SSRF_PROTECTION_ENABLED=false (for the webhook); both "
            f"are needed. It said: {said}",
            status=error.status,
        )
    if "health check failed" in said or "authentication parameters" in said:
        return NotReadyError(
            f"Label Studio cannot use {backend_url}: is `vlm serve` running, is that its address as Label Studio's own "
            f"machine or container sees it, and are BASIC_AUTH_USER and BASIC_AUTH_PASS the same? It said: {said}",
            status=error.status,
        )
    if "doesn't look like a valid ML backend" in said:
        return NotReadyError(
            f"{backend_url} answers, but is not ready for this project: its model is still loading, or the labelling "
            f"config has a mistake. It said: {said}",
            status=error.status,
        )
    return error


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise ValueError(f"{_shown(url)!r} is not the backend's address; write it like http://127.0.0.1:9090")
    if not _webhook_host(parts.hostname):
        raise ValueError(
            f"{_shown(url)!r}: Label Studio takes no webhook for the host {parts.hostname!r}. It must be an IP "
            "address, localhost, or a name with a dot and without an underscore; in a compose network, an alias such "
            "as backend.vlm.internal"
        )
    return url.rstrip("/")


def _webhook_host(host: str) -> bool:
    """Whether Label Studio takes the host in a webhook's address (Django's URLValidator)."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        *labels, top = host.rstrip(".").split(".")
        return host == "localhost" or bool(
            labels and all(_LABEL.fullmatch(item) for item in labels) and _TOP_LABEL.fullmatch(top)
        )
    return True


def _same_url(one: Any, other: str) -> bool:
    """Whether two addresses are the same but for spelling: case, default port, trailing slash."""

    def normal(url: str) -> tuple[str, str, int | None, str]:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme.lower())
        return parts.scheme.lower(), (parts.hostname or "").lower(), port, parts.path.rstrip("/")

    try:
        return isinstance(one, str) and normal(one) == normal(other)
    except ValueError:
        return False


def _header_of(hook: Json) -> str | None:
    headers = hook.get("headers") or {}
    return next((value for name, value in headers.items() if name.lower() == SECRET_HEADER.lower()), None)


def _is_version(title: str) -> bool:
    return title == _FIRST_TITLE or read_version_name(title) is not None


def _plain(text: str) -> str:
    """Label Studio's message without its HTML."""
    return " ".join(re.sub(r"<[^>]*>", "", text).split())


def _shown(url: Any) -> str:
    """An address without user and query."""
    parts = urlsplit(str(url))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def report_lines(report: ConnectReport) -> Sequence[str]:
    """The report for a terminal."""
    lines = [f"- {change}" for change in report.changes] or ["- nothing to change"]
    lines += [f"! {warning}" for warning in report.warnings]
    return [f"model version: {report.model_version}", *lines]
