"""The private Redis: one server, found by all, ended with its owner, with the data kept."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from backend import redis_server
from backend.redis_connection import connect_redis
from backend.redis_server import RedisUnavailableError, find_server, release_server
from tests.private_redis import Where


@pytest.fixture
def where(tmp_path: Path) -> Iterator[Where]:
    yield Where(tmp_path)
    release_server(tmp_path / "redis")


def until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


def answers(where: Where) -> bool:
    return redis_server._answers(redis_server.socket_path(where.data_dir / "redis"))


def other_process(where: Where, code: str) -> subprocess.Popen[str]:
    """A process that connects, prints `ready`, runs `code` and waits for its input to end."""
    script = f"""
        import os, sys
        from pathlib import Path
        from types import SimpleNamespace
        from backend.redis_connection import connect_redis
        client = connect_redis(SimpleNamespace(data_dir=Path({str(where.data_dir)!r}), redis_url=None))
        {code}
        print("ready", flush=True)
        sys.stdin.read()
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def finish(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=20)


def server_pid(client: redis.Redis) -> int:
    return int(client.info("server")["process_id"])


def test_it_starts_answers_and_ends(where: Where) -> None:
    client = connect_redis(where)
    client.set("key", "value")
    assert client.get("key") == b"value"
    assert client.config_get("appendonly")["appendonly"] == "yes"
    assert client.config_get("port")["port"] == "0"
    assert (where.data_dir / "redis").stat().st_mode & 0o777 == 0o700
    client.close()
    assert release_server(where.data_dir / "redis") is True
    assert not answers(where)
    assert release_server(where.data_dir / "redis") is False


def test_the_data_survives_a_restart(where: Where) -> None:
    client = connect_redis(where)
    client.set("key", "value")
    client.close()
    release_server(where.data_dir / "redis")
    again = connect_redis(where)
    assert again.get("key") == b"value"


def test_a_second_process_finds_the_first_ones_server(where: Where) -> None:
    client = connect_redis(where)
    other = other_process(where, "client.set('from', 'other')")
    ready(other)
    assert client.get("from") == b"other"
    pid = server_pid(client)
    finish(other)
    assert server_pid(client) == pid  # the guest's end is not the server's end


def test_threads_that_start_at_once_share_one_server(where: Where) -> None:
    pids: list[int] = []
    threads = [threading.Thread(target=lambda: pids.append(server_pid(connect_redis(where)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 8
    assert len(set(pids)) == 1


def test_processes_that_start_at_once_share_one_server(where: Where) -> None:
    code = "client.rpush('pids', client.info('server')['process_id'])"
    others = [other_process(where, code) for _ in range(4)]
    for other in others:
        ready(other)
    client = connect_redis(where)
    pids = client.lrange("pids", 0, -1)
    assert len(pids) == 4
    assert len(set(pids)) == 1
    client.close()
    for other in others:
        finish(other)


def test_the_server_ends_with_its_owner_even_when_that_is_killed(where: Where) -> None:
    owner = other_process(where, "client.set('key', 'kept')")
    ready(owner)
    assert answers(where)
    owner.kill()
    owner.wait()
    until(lambda: not answers(where), "the server has ended")
    assert connect_redis(where).get("key") == b"kept"


def test_the_thread_that_starts_it_may_end(where: Where) -> None:
    clients: list[redis.Redis] = []
    thread = threading.Thread(target=lambda: clients.append(connect_redis(where)))
    thread.start()
    thread.join()
    assert clients[0].ping() is True
    other = other_process(where, "")
    ready(other)  # time for a signal at the thread's end to have arrived
    finish(other)
    assert clients[0].ping() is True


def test_a_client_takes_over_when_the_owner_ends(where: Where) -> None:
    owner = other_process(where, "client.set('key', 'kept')")
    ready(owner)
    client = connect_redis(where)
    before = server_pid(client)
    owner.kill()
    owner.wait()
    until(lambda: not answers(where), "the server has ended")
    assert client.get("key") == b"kept"
    assert server_pid(client) != before
    assert release_server(where.data_dir / "redis") is True  # it is ours now


def test_an_owner_whose_server_was_killed_starts_another(where: Where) -> None:
    client = connect_redis(where)
    client.set("key", "kept")
    os.kill(server_pid(client), signal.SIGKILL)
    until(lambda: not answers(where), "the server is gone")
    assert client.get("key") == b"kept"


def test_an_idle_owner_starts_its_dead_server_again_for_the_others(where: Where) -> None:
    # Nobody else may start it, and the owner itself asks for nothing.
    owner = other_process(where, "client.set('key', 'kept')")
    ready(owner)
    client = connect_redis(where)
    before = server_pid(client)
    os.kill(before, signal.SIGKILL)
    until(lambda: not answers(where), "the server is gone")
    assert client.get("key") == b"kept"
    assert server_pid(client) != before
    assert release_server(where.data_dir / "redis") is False  # it is still the other's
    finish(owner)


def test_a_directory_that_cannot_be_used_is_an_error_with_the_remedy(where: Where) -> None:
    (where.data_dir / "redis" / "owner.lock").mkdir(parents=True)
    with pytest.raises(RedisUnavailableError, match=r"owner\.lock: Is a directory\. Make room or mend the permissions"):
        connect_redis(where)
    (where.data_dir / "file").touch()
    with pytest.raises(RedisUnavailableError, match=r"file.*: Not a directory"):
        connect_redis(Where(where.data_dir / "file"))


def test_a_server_without_its_owner_is_replaced_not_joined(where: Where) -> None:
    client = connect_redis(where)
    client.set("key", "kept")
    before = server_pid(client)
    # As if both the owner and the watching shell had been killed: the lock is free, the server runs.
    server = redis_server._owned.pop(where.data_dir / "redis")
    os.close(server._descriptors[1])
    path = redis_server.socket_path(where.data_dir / "redis")
    lock = redis_server._try_lock(where.data_dir / "redis" / "owner.lock")
    assert lock is not None
    redis_server._start(where.data_dir / "redis", lock, time.monotonic() + 20)
    assert redis_server._answers(path)
    assert client.get("key") == b"kept"
    assert server_pid(client) != before
    os.close(server._descriptors[0])
    server.process.wait(10)


def test_a_forked_child_does_not_keep_the_server_alive(where: Where) -> None:
    # An RQ worker forks for each job. A child that outlives its killed parent must not hold lock or pipe.
    code = """
        import signal
        child = os.fork()
        if child == 0:
            os.close(0), os.close(1)
            signal.pause()
        client.set("child", child)
    """
    owner = other_process(where, textwrap.dedent(code).replace("\n", "\n        "))
    ready(owner)
    reader = connect_redis(where)
    child = int(reader.get("child"))
    reader.close()
    try:
        owner.kill()
        owner.wait()
        until(lambda: not answers(where), "the server has ended")
        os.kill(child, 0)  # it still lives
        assert connect_redis(where).ping() is True
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_stale_socket_file_is_no_obstacle(where: Where) -> None:
    directory = where.data_dir / "redis"
    directory.mkdir()
    (directory / "redis.sock").write_bytes(b"")
    (directory / "owner.lock").touch()
    (directory / "server.lock").touch()
    assert connect_redis(where).ping() is True


def test_a_long_path_gets_a_short_socket_that_others_find(tmp_path: Path) -> None:
    deep = Where(tmp_path / ("deep" * 20) / ("deeper" * 10))
    try:
        client = connect_redis(deep)
        path = redis_server.socket_path(deep.data_dir / "redis")
        assert len(os.fsencode(path)) <= 100
        assert path.parent.stat().st_mode & 0o777 == 0o700
        other = other_process(deep, "client.set('from', 'other')")
        ready(other)
        finish(other)
        assert client.get("from") == b"other"
        release_server(deep.data_dir / "redis")
        assert connect_redis(deep).get("from") == b"other"
        assert redis_server.socket_path(deep.data_dir / "redis") == path  # used again, not piled up
    finally:
        release_server(deep.data_dir / "redis")
        shutil.rmtree(redis_server.socket_path(deep.data_dir / "redis").parent)


def test_a_recorded_socket_directory_that_others_may_write_is_not_trusted(tmp_path: Path) -> None:
    directory = tmp_path / ("deep" * 20) / ("deeper" * 10)
    directory.mkdir(parents=True)
    planted = tmp_path / "planted"
    planted.mkdir()
    planted.chmod(0o777)
    (directory / "socket").write_text(str(planted))
    assert redis_server.socket_path(directory) == directory / "redis.sock"
    planted.chmod(0o700)
    assert redis_server.socket_path(directory) == planted / "redis.sock"


def test_without_start_a_missing_server_is_an_error(where: Where) -> None:
    with pytest.raises(RedisUnavailableError, match="start `vlm serve` or `vlm worker`"):
        connect_redis(where, start=False)
    assert not (where.data_dir / "redis").exists()
    connect_redis(where)
    assert connect_redis(where, start=False).ping() is True


def test_a_damaged_file_is_reported_with_the_servers_own_words(where: Where) -> None:
    directory = where.data_dir / "redis"
    directory.mkdir()
    (directory / "appendonly.aof").write_bytes(b"this is no append-only file\n" * 10)
    (directory / "appendonlydir").write_bytes(b"nor is this a directory")
    with pytest.raises(RedisUnavailableError, match=r"redis\.log ends with: .*append.*move that file away"):
        connect_redis(where)
    for path in directory.glob("appendonly*"):
        path.unlink()
    assert connect_redis(where).ping() is True  # the failed start left no lock


def test_an_operators_redis_is_used_by_its_address(where: Where) -> None:
    connect_redis(where).set("key", "value")
    path = redis_server.socket_path(where.data_dir / "redis")
    client = connect_redis(Where(where.data_dir / "elsewhere", redis_url=f"unix://{path}"))
    assert client.get("key") == b"value"
    assert not (where.data_dir / "elsewhere").exists()


def test_an_address_without_redis_is_an_error_that_hides_the_password(tmp_path: Path) -> None:
    wrong = Where(tmp_path, redis_url=f"unix://user:hunter2@{tmp_path}/nothing.sock?password=hunter2")
    with pytest.raises(RedisUnavailableError, match="correct REDIS_URL") as caught:
        connect_redis(wrong)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_address_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RedisUnavailableError, match=r"Redis at somewhere:6379: ValueError: .*correct REDIS_URL"):
        connect_redis(Where(tmp_path, redis_url="somewhere:6379"))


def test_an_old_server_on_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=5.0.7 sha=00000000:0'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() != str(old)
    old.write_text("#!/bin/sh\necho 'Redis server v=7.2.4 sha=00000000:0'\n")
    assert find_server() == str(old)


def test_no_server_at_all_is_an_error_with_the_remedy(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(where.data_dir))
    monkeypatch.setattr(redis_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RedisUnavailableError, match=r"install Redis 6\.2 or newer"):
        connect_redis(where)
