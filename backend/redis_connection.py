"""A client of the project's Redis: the operator's (`REDIS_URL`), or the private one of `backend.redis_server`.

A client of the private server whose connection fails looks for the server again, and becomes its owner if there is
none. So when the owner ends, the next process that needs Redis takes over, with the queue as it was.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any, Protocol

import redis
from redis.backoff import ExponentialBackoff
from redis.connection import UnixDomainSocketConnection
from redis.retry import Retry

from backend.redis_server import RedisUnavailableError, ensure_server, find_running, socket_path

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0
"""Between the tries of one command; each wait is twice the one before."""


class RedisSettings(Protocol):
    """The settings that this module reads; `backend.settings.Settings` has them."""

    @property
    def redis_url(self) -> str | None:
        """Address of the operator's Redis; None for a private one."""

    @property
    def data_dir(self) -> Path:
        """Where the private server keeps its files, under `redis/`."""


def connect_redis(
    settings: RedisSettings, *, start: bool = True, timeout_s: float = 5.0, tries: int = 4
) -> redis.Redis:
    """A client of the project's Redis that has answered once.

    Args:
        settings: where Redis is.
        start: start a private server, and own it, where none runs. With False a missing one is an error.
        timeout_s: for one command; RQ's worker raises it for its own blocking calls.
        tries: of a command while Redis is away, with growing waits between: 4 take 0.35 s,
            12 take 13 s.

    Raises:
        RedisUnavailableError: no answer; names the address without its password, and the remedy.
    """
    common: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": min(2.0, timeout_s),
        "retry": Retry(ExponentialBackoff(cap=_LONGEST_WAIT_S, base=_FIRST_WAIT_S / 2), tries - 1),
        "health_check_interval": 30,
    }
    if settings.redis_url is not None:
        remedy = "start it, or correct REDIS_URL; without REDIS_URL a private one is started"
        try:
            client = redis.Redis.from_url(settings.redis_url, **common)
            client.ping()
        except (redis.RedisError, ValueError) as error:
            shown = re.sub(r"//[^@/]*@", "//***@", settings.redis_url.split("?")[0])
            raise RedisUnavailableError(
                f"Redis at {shown}: {type(error).__name__}: {remedy}"
            ) from None  # the cause may show the password
        return client
    directory = (settings.data_dir / "redis").absolute()
    if start:
        ensure_server(directory)
    elif not find_running(directory):
        raise RedisUnavailableError(
            f"no Redis runs for {settings.data_dir}: start `vlm serve` or `vlm worker` with the same VLM_DATA_DIR"
        )
    pool = redis.ConnectionPool(
        connection_class=EmbeddedConnection, embedded_directory=str(directory), may_start=start, **common
    )
    return redis.Redis(connection_pool=pool)


class EmbeddedConnection(UnixDomainSocketConnection):
    """A connection to the private server that looks for it again, or starts it, when it has gone."""

    def __init__(self, embedded_directory: str = "", may_start: bool = True, **kwargs: Any) -> None:
        """Connects when first used.

        Args:
            embedded_directory: the server's directory.
            may_start: become the owner where no server runs.
            kwargs: as for any Redis connection.
        """
        self._directory = Path(embedded_directory)
        self._may_start = may_start
        super().__init__(path=str(socket_path(self._directory)), **kwargs)  # type: ignore[no-untyped-call]

    def _connect(self) -> socket.socket:
        self.path = str(socket_path(self._directory))
        try:
            return super()._connect()  # type: ignore[no-any-return, no-untyped-call]
        except OSError:
            if not self._may_start:
                raise
        try:
            self.path = str(ensure_server(self._directory))
        except RedisUnavailableError as error:
            raise redis.ConnectionError(str(error)) from error
        return super()._connect()  # type: ignore[no-any-return, no-untyped-call]
