"""A real Redis of a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from backend.redis_connection import connect_redis
from backend.redis_server import release_server


@dataclass(frozen=True)
class Where:
    """Settings that name a directory for a private server."""

    data_dir: Path
    redis_url: str | None = None


@contextmanager
def private_redis(data_dir: Path) -> Iterator[redis.Redis]:
    """A connection to a server that keeps its data in a directory; the server ends after."""
    try:
        yield connect_redis(Where(data_dir))
    finally:
        release_server(data_dir / "redis")
