"""The project lock on a real Redis."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.private_redis import private_redis
from training_jobs.errors import LockLostError, ProjectBusyError
from training_jobs.lock import ProjectLock, release_dead

KEY = "vlm:training:7:lock"


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[redis.Redis]:
    with private_redis(tmp_path) as connected:
        yield connected


def test_one_job_at_a_time(connection: redis.Redis) -> None:
    with ProjectLock(connection, 7, "a") as lock:
        lock.check()
        with pytest.raises(ProjectBusyError, match="project 7"), ProjectLock(connection, 7, "b"):
            pass
        with ProjectLock(connection, 8, "b"):
            pass
        assert 0 < connection.pttl(KEY) <= 60_000
    assert not connection.exists(KEY)
    with ProjectLock(connection, 7, "b"):
        pass


def test_the_lock_is_kept_while_the_job_lives_and_is_free_after_its_death(connection: redis.Redis) -> None:
    with ProjectLock(connection, 7, "a", ttl_s=0.3) as lock:
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            assert connection.exists(KEY)
            time.sleep(0.01)
        lock.check()
    # As a killed job leaves it: nobody renews.
    connection.set(KEY, "dead:1", px=50)
    while connection.exists(KEY):
        time.sleep(0.01)
    with ProjectLock(connection, 7, "b"):
        pass


def test_a_second_run_of_the_same_job_takes_over(connection: redis.Redis) -> None:
    with ProjectLock(connection, 7, "a", ttl_s=0.3) as first, ProjectLock(connection, 7, "a", ttl_s=0.3) as second:
        assert first._lost.wait(5)
        with pytest.raises(LockLostError):
            first.check()
        second.check()
    assert not connection.exists(KEY)


def test_an_id_that_begins_alike_is_another_job(connection: redis.Redis) -> None:
    with ProjectLock(connection, 7, "train-1"):
        with pytest.raises(ProjectBusyError), ProjectLock(connection, 7, "train"):
            pass
        assert release_dead(connection, 7, "train") is False
        assert release_dead(connection, 7, "train-1") is True
        assert not connection.exists(KEY)


def test_a_lock_that_went_with_redis_data_is_taken_again_unless_another_was_faster(connection: redis.Redis) -> None:
    with ProjectLock(connection, 7, "a", ttl_s=0.3) as lock:
        connection.flushall()
        deadline = time.monotonic() + 5.0
        while not connection.exists(KEY):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        lock.check()
        connection.set(KEY, "b:1")
        assert lock._lost.wait(5)
    assert connection.get(KEY) == b"b:1"
