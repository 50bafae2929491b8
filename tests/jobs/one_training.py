"""One training of what is annotated now, as the worker does it, in this process."""

from __future__ import annotations

from collections.abc import Callable

from backend.label_studio.client import LabelStudioClient
from backend.label_studio.images import ImageConfig, ImageFetcher
from backend.settings import Settings
from backend.versions import VersionStore
from tests.jobs.label_studio import TOKEN, LabelStudio
from training_jobs.recipes.config import RecipeConfig
from training_jobs.recipes.finetune_decoder import FinetuneConfig
from training_jobs.recipes.fit_mask_head import MaskHeadConfig
from training_jobs.recipes.tune_conditions import ConditionsConfig
from training_jobs.training import train_version
from training_jobs.version_record import Result

QUICK = RecipeConfig(
    folds=2,
    choose_from=4,
    head_from=10_000,
    decoder_from=8,
    least_images_known=3,
    conditions=ConditionsConfig(steps=30),
    decoder=FinetuneConfig(steps=60, learning_rate=5e-3, pull=0.0, encoded_views=30, interpolations=(1.0,), threads=1),
)
"""Learns the colours of `tests.jobs.label_studio.picture` in seconds, with the decoder."""

HEADED = QUICK.model_copy(
    update={
        "head_from": 4,
        "decoder_from": 10_000,
        "head": MaskHeadConfig(steps=80, hidden=16, weight_decay=0.1),
        "conditions": ConditionsConfig(steps=2),
    }
)
"""The same, with a head."""


def train(
    label_studio: LabelStudio,
    settings: Settings,
    config: RecipeConfig,
    *,
    forced: bool = True,
    token: int | None = None,
    report: Callable[[str, float, float | None], None] = lambda phase, share, loss: None,
) -> Result:
    """Arguments as of `train_version`; `token`: None takes the next one."""
    store = VersionStore(settings.data_dir)
    with LabelStudioClient(label_studio.url, TOKEN, sleep=lambda seconds: None) as client:
        images = ImageConfig(cache_dir=settings.data_dir / "images", label_studio_url=label_studio.url)
        return train_version(
            7,
            settings,
            client=client,
            fetcher=ImageFetcher(images, client),
            token=store.next_token(7) if token is None else token,
            forced=forced,
            report=report,
            config=config,
        )
