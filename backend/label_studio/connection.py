"""What a right connection looks like in Label Studio: the entry of the backend, the project's settings, the webhook.

Pure functions of what Label Studio's API gives. `backend.label_studio.connect` brings a project into this state,
`vlm doctor` says where it is not. What Label Studio 1.23 needs, as observed, is told in the former.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from backend.label_studio.transport import Json
from backend.versions import read_version_name

SECRET_HEADER = "X-VLM-Webhook-Secret"
WEBHOOK_ACTIONS = ("ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED")
DESCRIPTION = "Masks and tags from text prompts (label-studio-vlm-backend)"
"""How an entry is recognised after its address or title changed."""
FIRST_TITLE = "label-studio-vlm-backend"
CONNECTED = "CO"
"""An entry's state when Label Studio's own call to it went well."""

# Names of hosts, the first with letters of any script.
_LABEL = re.compile(r"[^\W_](?:(?:[^\W_]|-){0,61}[^\W_])?")
_TOP_LABEL = re.compile(r"xn--[a-z0-9]{1,59}|(?!-)(?:[^\W\d_]|-){2,63}(?<!-)")


def wanted_entry(backend_url: str, basic_auth: tuple[str, str] | None) -> Json:
    """The fields of the backend's entry, without its title and without the password, which cannot be read back.

    Args:
        backend_url: this backend's address as Label Studio reaches it.
        basic_auth: user and password that the backend wants; None: none.
    """
    return {
        "url": backend_url,
        "is_interactive": True,
        "description": DESCRIPTION,
        "auth_method": "BASIC_AUTH" if basic_auth else "NONE",
        "basic_auth_user": basic_auth[0] if basic_auth else "",
    }


def entry_differences(entry: Json, wanted: Json) -> list[str]:
    """Names of the fields in which an entry differs from `wanted_entry`."""
    return [name for name, value in wanted.items() if (entry.get(name) or "") != (value or "")]


def own_entries(entries: Sequence[Json], backend_url: str) -> list[Json]:
    """The entries of this backend: those with its address first, then those that it had under another one."""
    ours = [item for item in entries if same_url(item.get("url"), backend_url)]
    return ours + [item for item in entries if item not in ours and item.get("description") == DESCRIPTION]


def is_ours(entry: Json, backend_url: str | None) -> bool:
    """Whether a connection of Label Studio's leads to this backend.

    Told by its address, by the description that `vlm connect` wrote, or by the version that it last reported.

    Args:
        entry: from `LabelStudioClient.ml_backends`.
        backend_url: this backend's address as Label Studio reaches it, where it is known.
    """
    return (
        (backend_url is not None and same_url(entry.get("url"), backend_url))
        or entry.get("description") == DESCRIPTION
        or read_version_name(str(entry.get("model_version") or "")) is not None
    )


def webhook_url(backend_url: str) -> str:
    """Where Label Studio sends a backend's events."""
    return f"{backend_url.rstrip('/')}/webhook"


def wanted_webhook(backend_url: str, secret: str | None, headers: Mapping[str, str] | None = None) -> Json:
    """The fields of the webhook.

    Args:
        backend_url: as for `wanted_entry`.
        secret: what the backend wants in `SECRET_HEADER`; None: nothing.
        headers: that the webhook has already; those of others are kept.
    """
    others = {name: value for name, value in (headers or {}).items() if name.lower() != SECRET_HEADER.lower()}
    return {
        "url": webhook_url(backend_url),
        "send_payload": True,
        "send_for_all_actions": False,
        "is_active": True,
        "actions": list(WEBHOOK_ACTIONS),
        "headers": {**others, **({SECRET_HEADER: secret} if secret else {})},
    }


def webhook_differences(hook: Json, wanted: Json) -> list[str]:
    """Names of the fields in which a webhook differs from `wanted_webhook`."""
    return [
        name
        for name, value in wanted.items()
        if (sorted(hook.get(name) or []) != sorted(value) if name == "actions" else hook.get(name) != value)
    ]


@dataclass(frozen=True)
class Webhooks:
    """A project's webhooks, sorted.

    Attributes:
        ours: the one that leads here; None where there is none.
        left_over: further ones that lead here, and ours under an address that this backend had before.
    """

    ours: Json | None
    left_over: tuple[Json, ...]


def sort_webhooks(hooks: Sequence[Json], backend_url: str) -> Webhooks:
    """Tell the webhook of this backend from what is left of former ones; those of others are in neither part."""
    here = [hook for hook in hooks if same_url(hook.get("url"), webhook_url(backend_url))]
    # Ours under an address that this backend had before: nothing else knows the header.
    ghosts = [hook for hook in hooks if hook not in here and secret_of(hook) is not None]
    return Webhooks(here[0] if here else None, (*here[1:], *ghosts))


def secret_of(hook: Json) -> str | None:
    """The secret that a webhook carries for us; None where it has no such header."""
    headers = hook.get("headers") or {}
    return next((value for name, value in headers.items() if name.lower() == SECRET_HEADER.lower()), None)


def is_version(title: str) -> bool:
    """Whether a title is one that `vlm connect` gave, and no owner chose."""
    return title == FIRST_TITLE or read_version_name(title) is not None


def checked_url(url: str) -> str:
    """A backend's address, without slashes at its end.

    Raises:
        ValueError: it is none, or one that Label Studio takes no webhook for.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise ValueError(f"{shown(url)!r} is not the backend's address; write it like http://127.0.0.1:9090")
    if not _webhook_host(parts.hostname):
        raise ValueError(
            f"{shown(url)!r}: Label Studio takes no webhook for the host {parts.hostname!r}. It must be an IP "
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


def same_url(one: Any, other: str) -> bool:
    """Whether two addresses are the same but for spelling: case, default port, trailing slash."""

    def normal(url: str) -> tuple[str, str, int | None, str]:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme.lower())
        return parts.scheme.lower(), (parts.hostname or "").lower(), port, parts.path.rstrip("/")

    try:
        return isinstance(one, str) and normal(one) == normal(other)
    except ValueError:
        return False


def plain(text: str) -> str:
    """Label Studio's message without its HTML."""
    return " ".join(re.sub(r"<[^>]*>", "", text).split())


def shown(url: Any) -> str:
    """An address without user and query."""
    parts = urlsplit(str(url))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
