"""Numbers and times as the page writes them."""

from __future__ import annotations

from datetime import datetime, timedelta

import htpy as h

NONE = "\N{EN DASH}"
"""Stands where there is no figure."""


def version(number: int) -> str:
    """A version in a sentence."""
    return f"version {number}" if number else "the base model"


def count(number: int, what: str) -> str:
    """A number of things, in the plural where it is not one."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def percent(share: float | None) -> str:
    """A share, 0 to 1, in whole percent."""
    return NONE if share is None else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def iou(value: float | None) -> str:
    """An IoU, 0 to 1."""
    return NONE if value is None else f"{value:.2f}"


def ago(time: datetime, now: datetime) -> h.Element:
    """How long ago, with the time itself for who points at it."""
    return h.time(datetime=time.isoformat(timespec="seconds"), title=f"{time:%Y-%m-%d %H:%M:%S} UTC")[
        f"{span(now - time)} ago"
    ]


def span(length: timedelta) -> str:
    """A length of time in its largest unit."""
    seconds = max(0, round(length.total_seconds()))
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            return count(seconds // size, unit)
    return count(seconds, "second")
