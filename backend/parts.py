"""What the server and the jobs are made of, as the settings say: the model, the images, the caches, the queues."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from backend.decoding import decode_label
from backend.disk_cache import DiskCache
from backend.gpu_memory import bound_gpu_memory
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.images import ImageConfig, ImageFetcher
from backend.label_studio.transport import IMPORT_PATIENCE
from backend.label_studio.values import (
    bitmask_value,
    brush_value,
    ellipse_value,
    polygon_value,
    rotated_rectangle_value,
)
from backend.model_store import ServingModel
from backend.prelabel_ledger import Patience
from backend.prelabel_queue import PrelabelQueue
from backend.queue import TrainingQueue
from backend.redis_connection import connect_redis
from backend.settings import Settings

_REDIS_TIMEOUT_S = 0.5
"""For one command: a webhook has one second in all."""


def load_model(settings: Settings) -> ServingModel:
    """The base model of the settings; see `vlm_core.load` for what it raises."""
    # The SDK takes half a second to import, the loops that draw masks seconds to compile; here nobody waits for it.
    import label_studio_sdk.label_interface.interface  # noqa: F401

    import vlm_core

    prepare_masks()

    bound_gpu_memory(settings)
    return vlm_core.load(settings.checkpoint, device=settings.device, dtype=settings.dtype)


def prepare_masks() -> None:
    """Draw a mask of four pixels in every way: compiles the loops, or reads them from where numba keeps them."""
    ones = np.ones((1, 2, 2), dtype=np.float32)
    found = decode_label(ones, (2, 2), threshold=0.5, unwanted=-ones, peaks=True)
    (piece,) = found.pieces()  # the logits are 1
    for draw in (brush_value, bitmask_value, polygon_value, rotated_rectangle_value, ellipse_value):
        draw(piece)


def label_studio_client(settings: Settings) -> Callable[[], LabelStudioClient] | None:
    """What makes a client of the settings' Label Studio; None where they name none, or no token."""
    url, token = settings.label_studio_url, settings.label_studio_token
    if url is None or token is None:
        return None
    return lambda: LabelStudioClient(url, token, timeout_s=settings.label_studio_timeout_s)


def image_fetcher(settings: Settings) -> ImageFetcher:
    """The images' one way in, with the token for Label Studio where the settings have both."""
    connect = label_studio_client(settings)
    return ImageFetcher(ImageConfig.from_settings(settings), None if connect is None else connect())


def feature_files(settings: Settings) -> DiskCache:
    """Where the server keeps what the model saw in images."""
    return DiskCache(settings.data_dir / "cache" / "served-features", settings.feature_disk_bytes)


def connect_queue(settings: Settings) -> TrainingQueue:
    """The training queue of the settings; see `backend.redis_connection.connect_redis` for what it raises."""
    return TrainingQueue.of(connect_redis(settings, timeout_s=_REDIS_TIMEOUT_S), settings)


def connect_prelabelling(settings: Settings) -> PrelabelQueue:
    """The queue of pre-labelling; raises as `connect_queue` does."""
    # One more try only: an answer of /predict waits for it.
    connection = connect_redis(settings, timeout_s=_REDIS_TIMEOUT_S, tries=2)
    return PrelabelQueue(connection, patience=patience(settings))


def patience(settings: Settings) -> Patience:
    """How long server and jobs wait for each other and for Label Studio before they write a prediction."""
    # What an import that was given up does after it, it does within the time for one more answer.
    return Patience(settle_s=(IMPORT_PATIENCE + 1) * settings.label_studio_timeout_s)
