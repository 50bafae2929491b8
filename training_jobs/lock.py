"""One training per project at a time: a lock in Redis that is renewed while the job lives.

The lock saves double work. It is not what keeps a late job from publishing (a job may sleep between two
renewals): that is the fencing token, `backend.versions.VersionStore.publish`.
"""

from __future__ import annotations

import threading
import time
import uuid
from types import TracebackType

import redis

from training_jobs.errors import LockLostError, ProjectBusyError

_TAKE = """
local holder = redis.call('GET', KEYS[1])
if holder and string.sub(holder, 1, #ARGV[2]) ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return 1
"""
_RENEW = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
"""A lock that has expired or went with Redis's data, and that nobody took since, is taken again."""

_RELEASE_DEAD = """
local holder = redis.call('GET', KEYS[1])
if holder and string.sub(holder, 1, #ARGV[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


def release_dead(connection: redis.Redis, project_id: int, job_id: str) -> bool:
    """Release the lock that a job left behind when its process was killed; returns whether it did.

    Only for a job that will not be run again.
    """
    return bool(connection.eval(_RELEASE_DEAD, 1, _key(project_id), f"{job_id}:"))


class ProjectLock:
    """Holds the lock of a project inside a `with` block.

    A job that is run again (RQ found its worker dead) takes over the lock of its own former run, which then loses
    it.
    """

    def __init__(self, connection: redis.Redis, project_id: int, job_id: str, *, ttl_s: float = 60.0) -> None:
        """Nothing is taken yet.

        Args:
            connection: to Redis.
            project_id: Label Studio's id.
            job_id: of the RQ job.
            ttl_s: after which the lock of a dead job is free; renewed three times within it.
        """
        self._key = _key(project_id)
        self._project_id = project_id
        self._owner = f"{job_id}:"
        self._value = f"{job_id}:{uuid.uuid4().hex}"
        self._ttl_ms = round(ttl_s * 1000)
        self._take, self._renew, self._release = (
            connection.register_script(script) for script in (_TAKE, _RENEW, _RELEASE)
        )
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ProjectLock:
        """Take the lock.

        Raises:
            ProjectBusyError: another job holds it.
        """
        if not self._take(keys=[self._key], args=[self._value, self._owner, self._ttl_ms]):
            raise ProjectBusyError(f"another job trains project {self._project_id}: wait for it to end")
        self._thread = threading.Thread(target=self._keep, name="lock renewal", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock, if it is still ours."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self._release(keys=[self._key], args=[self._value])
        except redis.RedisError:
            if kind is None:  # it ends by itself; an error of the job's own is the more interesting one
                raise

    def check(self) -> None:
        """Raises LockLostError once the lock is no longer ours."""
        if self._lost.is_set():
            raise LockLostError(f"the job lost the lock of project {self._project_id}: another may have taken over")

    def _keep(self) -> None:
        renewed_at = time.monotonic()
        while not self._stop.wait(self._ttl_ms / 3000):
            try:
                if not self._renew(keys=[self._key], args=[self._value, self._ttl_ms]):
                    self._lost.set()
                    return
                renewed_at = time.monotonic()
            except redis.RedisError:
                if time.monotonic() - renewed_at > self._ttl_ms / 1000:
                    self._lost.set()
                    return


def _key(project_id: int) -> str:
    return f"vlm:training:{project_id}:lock"
