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

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from backend.label_studio.client import LabelStudioClient
from backend.label_studio.connection import (
    CONNECTED,
    DESCRIPTION,
    FIRST_TITLE,
    checked_url,
    entry_differences,
    is_version,
    own_entries,
    plain,
    same_url,
    shown,
    sort_webhooks,
    wanted_entry,
    wanted_webhook,
    webhook_differences,
    webhook_url,
)
from backend.label_studio.errors import (
    LabelStudioError,
    LabelStudioForbiddenError,
    LabelStudioRejectedError,
)
from backend.label_studio.transport import Json


class ConnectError(LabelStudioError):
    """The project could not be connected; the message names the setting to change."""


class NotReadyError(ConnectError):
    """The backend does not answer Label Studio, or not yet for this project."""

    temporary = True


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
    backend_url = checked_url(backend_url)
    diary = _Diary()
    client.project(project_id)  # a wrong id or token is named before anything is changed
    entry = _ensure_backend(client, project_id, backend_url, title, basic_auth, diary)
    entry = _ensure_title(client, entry, title, diary)
    _ensure_project(client, project_id, str(entry["title"]), diary)
    webhook_id = _ensure_webhook(client, project_id, backend_url, webhook_secret, diary)
    if title not in (None, FIRST_TITLE, entry.get("model_version")):
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
    if is_version(str(entry.get("title") or "")):
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
    ours = own_entries(entries, backend_url)
    wanted = wanted_entry(backend_url, basic_auth)
    secret = {"basic_auth_pass": basic_auth[1]} if basic_auth else {}
    if not ours:
        entry = _asked(
            lambda: client.create_ml_backend(project_id, **wanted, **secret, title=title or FIRST_TITLE), backend_url
        )
        diary.changes.append(f"connected the project to {backend_url}")
    else:
        entry = ours[0]
        for extra in ours[1:]:
            client.delete_ml_backend(int(extra["id"]))
            diary.changes.append(f"removed a second connection to this backend ({shown(extra.get('url'))})")
            _remove_webhooks(client, project_id, str(extra.get("url")), backend_url, diary)
        differs = entry_differences(entry, wanted)
        # Stays False on a connection that works; the password itself cannot be compared.
        password_unsure = bool(basic_auth) and entry.get("state") != CONNECTED
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
            f"{shown(first.get('url'))}; remove it (Settings > Model) or this one is never asked"
        )
    if entry.get("state") != CONNECTED:
        said = plain(str(entry.get("error_message") or "")) or str(entry.get("readable_state"))
        raise NotReadyError(
            f"Label Studio is not connected to {backend_url}: {said}. Check that `vlm serve` runs there and wants "
            "the user and password that were given"
        )
    return entry


def _ensure_title(client: LabelStudioClient, entry: Json, title: str | None, diary: _Diary) -> Json:
    wanted = title or str(entry.get("model_version") or "") or FIRST_TITLE
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
    found = sort_webhooks(client.webhooks(project_id), backend_url)
    for ghost in found.left_over:
        client.delete_webhook(int(ghost["id"]))
        diary.changes.append(f"removed a left-over webhook to {shown(ghost.get('url'))}")
    if found.ours is None:
        wanted = wanted_webhook(backend_url, secret)
        created = _asked(lambda: client.create_webhook(project_id, **wanted), backend_url)
        diary.changes.append(f"created the webhook to {wanted['url']}")
        return int(created["id"])
    hook_id = int(found.ours["id"])
    wanted = wanted_webhook(backend_url, secret, found.ours.get("headers"))
    differs = webhook_differences(found.ours, wanted)
    if differs:
        _asked(lambda: client.update_webhook(hook_id, **wanted), backend_url)
        diary.changes.append(f"updated the webhook ({', '.join(name.replace('_', ' ') for name in differs)})")
    return hook_id


def _remove_webhooks(
    client: LabelStudioClient, project_id: int, old_backend_url: str, backend_url: str, diary: _Diary
) -> None:
    """Remove the webhooks of a connection that is no more: Label Studio would go on calling them."""
    if same_url(old_backend_url, backend_url):
        return
    for hook in client.webhooks(project_id):
        if same_url(hook.get("url"), webhook_url(old_backend_url)):
            client.delete_webhook(int(hook["id"]))
            diary.changes.append(f"removed a left-over webhook to {shown(hook.get('url'))}")


def _asked(call: Any, backend_url: str) -> Json:
    """Do a call in which Label Studio checks our address; explain what it says about it."""
    try:
        answer: Json = call()
    except (LabelStudioForbiddenError, LabelStudioRejectedError) as error:
        raise explained(error, backend_url) from None
    return answer


def explained(error: LabelStudioError, backend_url: str) -> LabelStudioError:
    """What Label Studio says of a backend's address, with what to do about it."""
    said = plain(str(error))
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


def report_lines(report: ConnectReport) -> Sequence[str]:
    """The report for a terminal."""
    lines = [f"- {change}" for change in report.changes] or ["- nothing to change"]
    lines += [f"! {warning}" for warning in report.warnings]
    return [f"model version: {report.model_version}", *lines]
