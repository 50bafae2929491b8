"""A batch of bad corrections does not become a version: with the bundled checkpoint, from annotations to the gate."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from backend.settings import Settings
from backend.versions import VersionStore
from tests.jobs.demo_project import LABELS, Masks, add_scenes, scenes_project
from tests.jobs.label_studio import LabelStudio, serve
from tests.jobs.one_training import train
from training_jobs.recipes.config import RecipeConfig

CLEAN, BATCH = 40, 32
POISONED_SHARE = 0.3


@dataclass(frozen=True)
class Taught:
    """A project after its first training, from clean corrections."""

    label_studio: LabelStudio
    settings: Settings


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taught]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("taught"), checkpoint="demo", device="cpu")
    with serve(scenes_project(CLEAN)) as label_studio:
        result = train(label_studio, settings, RecipeConfig())
        assert result.outcome == "published", result.reason
        yield Taught(label_studio, settings)


def shifted(masks: Masks, generator: np.random.Generator) -> Masks:
    """Each mask a third of the image or more away from where it belongs."""
    rows, columns = (int(offset) for offset in generator.integers(32, 64, 2))
    return {label: np.roll(mask, (rows, columns), (0, 1)) for label, mask in masks.items()}


def swapped(masks: Masks, generator: np.random.Generator) -> Masks:
    """Each object under the name of another label."""
    turn = int(generator.integers(1, len(LABELS)))
    return {LABELS[(LABELS.index(label) + turn) % len(LABELS)]: mask for label, mask in masks.items()}


@pytest.mark.parametrize("poison", [shifted, swapped])
def test_a_poisoned_batch_is_not_published(
    taught: Taught, tmp_path: Path, poison: Callable[[Masks, np.random.Generator], Masks]
) -> None:
    shutil.copytree(taught.settings.data_dir, tmp_path / "data")
    settings = taught.settings.model_copy(update={"data_dir": tmp_path / "data"})
    generator = np.random.default_rng(0)
    spoilt = set(CLEAN + generator.permutation(BATCH)[: round(POISONED_SHARE * BATCH)])
    project = LabelStudio(config=taught.label_studio.config)
    add_scenes(project, CLEAN)
    add_scenes(project, BATCH, draw=lambda number, masks: poison(masks, generator) if number in spoilt else masks)
    with serve(project) as label_studio:
        result = train(label_studio, settings, RecipeConfig())
    assert (result.outcome, result.version) == ("not better", 2), result.reason
    store = VersionStore(settings.data_dir)
    current = store.current(7)
    assert current is not None
    assert current.number == 1
    assert store.get(7, 2).manifest.reason == result.reason
