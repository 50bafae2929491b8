"""Checks of Label Studio itself: there, of a known release, its token good, its clock right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from backend.doctor.findings import Finding, Subject
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.errors import LabelStudioError

STUDIO = Subject("Label Studio")

TRIED_FROM = (1, 23)
MOST_SKEW = timedelta(seconds=60)


def check_label_studio(
    client: LabelStudioClient, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Iterator[Finding]:
    """Whether it answers and takes the token.

    Args:
        client: with the settings' address and token.
        now: this machine's time, aware.
    """
    try:
        release, there = client.greet()
    except LabelStudioError as error:
        yield STUDIO.problem(
            "address", str(error), "start Label Studio, or set LABEL_STUDIO_URL to its address as this machine sees it"
        )
        yield STUDIO.skipped("token", "not before Label Studio answers")
        return
    version = tuple(int(part) for part in release.split(".")[:2] if part.isdecimal())
    if version and version < TRIED_FROM:
        tried = ".".join(map(str, TRIED_FROM))
        yield STUDIO.note(
            "address", f"Label Studio {release} at {client.base_url}; this backend was tried from {tried} on"
        )
    else:
        yield STUDIO.ok("address", f"Label Studio {release} at {client.base_url}")
    skew = abs(there - now()) if there is not None else timedelta(0)
    if skew > MOST_SKEW:
        yield STUDIO.problem(
            "clock",
            f"its clock and this machine's differ by {skew.total_seconds():.0f} s: tokens and signed addresses of "
            "images expire early, and events look older than they are",
            "set both by NTP",
        )
    elif there is not None:
        yield STUDIO.ok("clock", "its clock agrees with this machine's")
    yield from _check_token(client)


def _check_token(client: LabelStudioClient) -> Iterator[Finding]:
    kind = client.token_kind
    try:
        user = client.whoami()
    except LabelStudioError as error:
        yield STUDIO.problem(
            "token",
            f"the {kind} is refused: {error}",
            "create a personal access token (Account & Settings > Personal Access Token) and set LABEL_STUDIO_API_KEY",
        )
        return
    yield STUDIO.ok("token", f"the {kind} is good, of user {user.get('email') or user.get('id')}")
