"""Checks of this machine: data directory, checkpoint, device, Redis, workers."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis

from backend.doctor.findings import Finding, Subject
from backend.queue import TrainingQueue
from backend.redis_server import OLDEST_SERVER, RedisUnavailableError
from backend.settings import Settings
from backend.versions import VersionError, VersionStore
from vlm_core.errors import VLMError

HERE = Subject("this machine")

LEAST_FREE_BYTES = 1 << 30
"""Of the data directory's disk: room for a version, its caches and Redis's file while it is rewritten."""


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Settings that are valid one by one, but do not go together."""
    missing = [
        name
        for name, value in (
            ("LABEL_STUDIO_URL", settings.label_studio_url),
            ("LABEL_STUDIO_API_KEY", settings.label_studio_token),
        )
        if not value
    ]
    if missing:
        yield HERE.problem(
            "settings",
            f"{' and '.join(missing)} not set: nothing is learned, and images in Label Studio cannot be fetched",
            f"set {' and '.join(missing)} (Label Studio: Account & Settings > Personal Access Token)",
        )
    if settings.basic_auth is not None and settings.webhook_secret is None:
        yield HERE.problem(
            "settings",
            "the server asks for Basic auth, which webhooks cannot carry: every annotation event is refused",
            "set VLM_WEBHOOK_SECRET, start the server anew, and run `vlm connect` for each project",
        )
    open_to_all = settings.host not in ("127.0.0.1", "localhost", "::1") and settings.basic_auth is None
    if open_to_all:
        yield HERE.note(
            "settings",
            f"the server listens on {settings.host} and asks for no password: set BASIC_AUTH_USER and BASIC_AUTH_PASS "
            "unless the network keeps others away",
        )
    if not missing and not (settings.basic_auth is not None and settings.webhook_secret is None) and not open_to_all:
        yield HERE.ok("settings", "the settings go together")


def check_data_dir(data_dir: Path, usage: Callable[[Path], Any] = shutil.disk_usage) -> Iterator[Finding]:
    """Whether the data directory can be written, and has room.

    Args:
        data_dir: of the settings.
        usage: gives an object with `free`, bytes.
    """
    there = data_dir
    while not there.exists():
        there = there.parent
    try:
        if data_dir.is_dir():
            with tempfile.NamedTemporaryFile(dir=data_dir, prefix=".doctor-"):
                pass
        elif not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(13, "it is not there and cannot be made", str(there))
    except OSError as error:
        yield HERE.problem(
            "data directory",
            f"{data_dir} cannot be written: {error.strerror or error}",
            "mend its owner and permissions (the server's user must own it), or choose another VLM_DATA_DIR",
        )
        return
    free = usage(there).free
    if free < LEAST_FREE_BYTES:
        yield HERE.problem(
            "disk space",
            f"{free / 1e9:.1f} GB are free for {data_dir}",
            "make room, choose another VLM_DATA_DIR, or lower VLM_IMAGE_CACHE_BYTES and VLM_FEATURE_DISK_BYTES",
        )
        return
    yield HERE.ok("data directory", f"{data_dir} can be written, {free / 1e9:.0f} GB are free")


def check_versions(data_dir: Path) -> Iterator[Finding]:
    """Whether every project's versions can be read."""
    store, whole, found = VersionStore(data_dir), True, 0
    for project_id in store.project_ids():
        try:
            found += len(store.list(project_id))
            store.current(project_id)
        except VersionError as error:
            whole = False
            yield HERE.problem("versions", f"project {project_id}: {error}", "restore it, or let another version serve")
    if whole:
        yield HERE.ok("versions", f"all {found} versions in the data directory can be read")


def check_checkpoint(settings: Settings) -> Iterator[Finding]:
    """Whether the checkpoint is on this machine and whole; nothing is fetched or loaded."""
    from backend.models_command import show

    name = settings.checkpoint
    local = Path(name).expanduser().exists()
    try:
        said = show(name)
    except VLMError as error:
        yield HERE.problem(
            "checkpoint",
            f"{name}: {error}",
            "complete it, or set VLM_CHECKPOINT to another; `vlm models` lists what can be loaded"
            if local
            else f"`vlm models pull {name}` where there is a network, or set VLM_CHECKPOINT to a directory; "
            "`vlm models` lists what can be loaded",
        )
        return
    if said.missing:
        yield HERE.problem(
            "checkpoint",
            f"{name} lacks {', '.join(said.missing)}",
            "complete the directory" if local else f"fetch it again with `vlm models pull {name}`",
        )
    elif name == "demo":
        yield HERE.note("checkpoint", "the demo checkpoint: it knows coloured shapes only, nothing of photographs")
    else:
        gives = " and ".join(what for what, is_there in (("masks", said.masks), ("tags", said.tags)) if is_there)
        yield HERE.ok("checkpoint", f"{name} is here and whole, it gives {gives}")


def check_device(settings: Settings, driver: Path = Path("/proc/driver/nvidia/version")) -> Iterator[Finding]:
    """Whether the device is there.

    Args:
        settings: whose device.
        driver: a file that is there where NVIDIA's driver is.
    """
    import torch

    from vlm_core.checkpoint import resolve_device, resolve_dtype

    try:
        device = resolve_device(settings.device)
        dtype = resolve_dtype(settings.dtype, device)
    except (VLMError, ValueError, RuntimeError) as error:
        yield HERE.problem(
            "device",
            f"VLM_DEVICE={settings.device}, VLM_DTYPE={settings.dtype}: {error}",
            "set VLM_DEVICE=auto, or mend the driver (`nvidia-smi` must list the GPU; a container needs it passed in)",
        )
        return
    said = f"the model runs on {device} in {str(dtype).removeprefix('torch.')}"
    if device.type == "cpu" and settings.device == "auto" and driver.exists() and not torch.cuda.is_available():
        yield HERE.problem(
            "device",
            f"{said}, though this machine has a driver for NVIDIA GPUs: PyTorch {torch.__version__} sees none",
            "pass the GPU into the container, install PyTorch for CUDA and a driver that is new enough, or set "
            "VLM_DEVICE=cpu if that is meant",
        )
    elif device.type == "cpu" and dtype != resolve_dtype("auto", device):
        yield HERE.note("device", f"{said}: VLM_DTYPE=auto is faster on this machine")
    else:
        yield HERE.ok("device", said)


def check_redis(connect: Callable[[], redis.Redis], *, own: bool) -> Iterator[Finding]:
    """Whether Redis answers, keeps what it is given, and has a worker.

    Args:
        connect: gives a client that has answered; starts no server.
        own: it is an operator's Redis (REDIS_URL), not the private one.
    """
    try:
        connection = connect()
        info, keeps_snapshots = connection.info(), _keeps_snapshots(connection)
    except (RedisUnavailableError, redis.RedisError) as error:
        yield HERE.problem(
            "redis",
            str(error),
            "start Redis, or mend REDIS_URL"
            if own
            else "start `vlm serve` or `vlm worker`: they start the private one",
        )
        yield HERE.skipped("worker", "not before Redis answers")
        return
    yield from _redis_findings(info, keeps_snapshots, own)
    queue = TrainingQueue(connection)
    counts = queue.counts()
    if counts.workers == 0:
        waiting = f", {counts.queued} jobs wait" if counts.queued else ""
        yield HERE.problem(
            "worker",
            f"no worker is signed on{waiting}: nothing is learned",
            "start `vlm worker`, or the server with --with-worker; a container's log says why it ended",
        )
    else:
        yield HERE.ok("worker", f"{counts.workers} signed on, {counts.queued} jobs wait, {counts.running} run")


def _redis_findings(info: dict[str, Any], keeps_snapshots: bool | None, own: bool) -> Iterator[Finding]:
    version = tuple(int(part) for part in str(info.get("redis_version", "0")).split(".")[:2] if part.isdecimal())
    if version < OLDEST_SERVER:
        yield HERE.problem(
            "redis version",
            f"Redis {info.get('redis_version')} is too old for the queue",
            f"use Redis {OLDEST_SERVER[0]}.{OLDEST_SERVER[1]} or newer",
        )
    wrong = [
        f"its last {what} failed"
        for key, what in (("rdb_last_bgsave_status", "snapshot"), ("aof_last_write_status", "write to disk"))
        if info.get(key, "ok") != "ok"
    ]
    if wrong:
        yield HERE.problem("redis persistence", f"Redis answers, but {' and '.join(wrong)}", "make room on its disk")
    elif not info.get("aof_enabled") and keeps_snapshots is False:
        yield HERE.problem(
            "redis persistence",
            "Redis keeps nothing on disk: a restart forgets the queue",
            "start it with --appendonly yes and a volume",
        )
    elif info.get("maxmemory") and info.get("maxmemory_policy") != "noeviction":
        yield HERE.problem(
            "redis persistence",
            f"Redis drops what does not fit ({info.get('maxmemory_policy')}): jobs can vanish",
            "set its maxmemory-policy to noeviction",
        )
    elif version >= OLDEST_SERVER:
        yield HERE.ok("redis", f"{'yours' if own else 'the private one'}, {info.get('redis_version')}, keeps the queue")


def _keeps_snapshots(connection: redis.Redis) -> bool | None:
    """Whether Redis is set to save now and then; None where it may not be asked."""
    try:
        return bool(connection.config_get("save").get("save"))
    except redis.ResponseError:
        return None
