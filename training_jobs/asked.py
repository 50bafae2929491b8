"""When the reconcile job asks again for a training that came to nothing.

A job that failed for good has read nothing that counts, so its annotations stay news. What made it fail may pass
without anybody doing something (a Label Studio that was away for hours, a machine without memory), and may not (a
setting). So the same news is asked for again and again, each time after twice the pause: from the pause of the
reconcile job up to a day, counted from when the former job was last seen alive. News of another kind, such as another
correction, is asked for at once.

    vlm:reconcile:asked:<project>   JSON: `mark` of the news, `times` that it was asked for, `at` (seconds since 1970)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import redis

MOST_PAUSE_S = 24 * 3600.0

_KEY = "vlm:reconcile:asked"
_FORGET_S = int(3 * MOST_PAUSE_S)


def pause_s(times: int, shortest_s: float) -> float:
    """How long to wait after so many requests for the same news.

    >>> [pause_s(times, 300.0) for times in (1, 2, 3, 9, 10, 1000)]
    [300.0, 600.0, 1200.0, 76800.0, 86400.0, 86400.0]
    """
    return min(MOST_PAUSE_S, shortest_s * 2.0 ** min(times - 1, 30))


@dataclass(frozen=True)
class Asked:
    """The requests for one project's news, in Redis: lost with it, it costs one early request."""

    connection: redis.Redis
    project_id: int
    shortest_s: float
    """The pause after the first request."""

    def waits(self, mark: str, now: float) -> bool:
        """Whether this very news was asked for, and its pause is not over.

        Args:
            mark: of the news.
            now: seconds since 1970.
        """
        last = self._last()
        if last is None or last["mark"] != mark:
            return False
        # A time to come is another machine's clock, or one that was put back: no reason to wait for it.
        return bool(0 <= now - last["at"] < pause_s(last["times"], self.shortest_s))

    def note(self, mark: str, now: float) -> None:
        """It is being asked for."""
        last = self._last()
        times = last["times"] + 1 if last is not None and last["mark"] == mark else 1
        self._keep({"mark": mark, "times": times, "at": now})

    def note_alive(self, now: float) -> None:
        """A training of the project waits or runs: a pause begins when it has ended."""
        last = self._last()
        if last is not None:
            self._keep({**last, "at": now})

    def _last(self) -> dict[str, Any] | None:
        kept = self.connection.get(self._key)
        try:
            record = json.loads(kept or b"")
            return {"mark": str(record["mark"]), "times": int(record["times"]), "at": float(record["at"])}
        except (ValueError, KeyError, TypeError):  # nothing, or of another release
            return None

    def _keep(self, record: dict[str, Any]) -> None:
        self.connection.set(self._key, json.dumps(record), ex=_FORGET_S)

    @property
    def _key(self) -> str:
        return f"{_KEY}:{self.project_id}"
