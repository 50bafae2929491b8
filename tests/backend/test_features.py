from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from backend.disk_cache import DiskCache
from backend.features import FeatureCache, feature_key
from backend.inference import Inference
from backend.metrics import Metrics, Times
from backend.model_store import ModelStore
from backend.versions import VersionStore
from tests.backend.fakes import ColourModel, MemoryImage
from vlm_core.types import ImageFeatures


def features(value: float, cells: int = 4) -> ImageFeatures:
    return ImageFeatures((torch.full((1, cells, 2), float(value)),), (2, cells // 2), None)


def key(number: int) -> str:
    return feature_key("masks", ColourModel(), f"{number:064x}")


SIZE = features(0.0).nbytes


def test_the_newest_stay_in_memory() -> None:
    cache = FeatureCache(2 * SIZE)
    for number in range(3):
        cache.put(key(number), features(number))
        if number == 1:
            assert cache.get(key(0)) is not None  # used again: now 1 is the oldest
    assert cache.get(key(1)) is None
    for number in (0, 2):
        found = cache.get(key(number))
        assert found is not None
        assert found.taps[0][0, 0, 0] == number


def test_what_memory_has_no_room_for_comes_from_disk_after_a_restart_too(tmp_path: Path) -> None:
    cache = FeatureCache(SIZE, DiskCache(tmp_path, 10**6))
    for number in range(3):
        cache.put(key(number), features(number))
    cache.close()
    again = FeatureCache(SIZE, DiskCache(tmp_path, 10**6))
    for number in range(3):
        found = again.get(key(number))
        assert found is not None
        assert torch.equal(found.taps[0], features(number).taps[0])


def test_a_damaged_file_is_nothing_and_goes(tmp_path: Path) -> None:
    cache = FeatureCache(0, DiskCache(tmp_path, 10**6))
    cache.put(key(1), features(1.0))
    cache.close()
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    file.write_bytes(file.read_bytes()[:-3])
    assert cache.get(key(1)) is None
    assert not file.exists()


def test_a_disk_that_cannot_be_written_costs_nothing_but_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = FeatureCache(SIZE, DiskCache(tmp_path / "file" / "c", 10**6))
    cache.put(key(1), features(1.0))
    cache.close()
    assert cache.get(key(1)) is not None
    assert FeatureCache(SIZE, DiskCache(tmp_path / "file" / "c", 10**6)).get(key(1)) is None


def test_another_model_or_kind_or_image_has_another_key() -> None:
    names = {feature_key(kind, ColourModel(), "a" * 64) for kind in ("masks", "tags", "both")}  # type: ignore[arg-type]
    names.add(feature_key("masks", ColourModel(fingerprint="f" * 64), "a" * 64))
    names.add(feature_key("masks", ColourModel(), "b" * 64))
    assert len(names) == 5


METRICS = Metrics()


def inference(model: ColourModel, tmp_path: Path, cache: FeatureCache) -> Inference:
    return Inference(ModelStore(lambda: model, VersionStore(tmp_path)), cache, METRICS)


def test_a_known_image_is_neither_decoded_nor_encoded(tmp_path: Path) -> None:
    model = ColourModel()
    asked = inference(model, tmp_path, FeatureCache(10**7))

    class Undecoded:
        sha256 = "c" * 64

        @property
        def image(self) -> Image.Image:
            decoded.append(1)
            return Image.new("RGB", (8, 8), "red")

    decoded: list[int] = []
    first = asked.features("masks", model, Undecoded(), 1.0, Times(METRICS))
    second = asked.features("masks", model, Undecoded(), 1.0, Times(METRICS))
    assert torch.equal(first.taps[0], second.taps[0])
    assert model.encoded == ["masks"]
    assert len(decoded) <= 2  # by the thread that asked, and from what it keeps by the one that encodes


def test_phrases_get_their_own_grids_in_any_order(tmp_path: Path) -> None:
    model = ColourModel()
    asked = inference(model, tmp_path, FeatureCache(10**7))
    image = Image.new("RGB", (8, 8), "red")
    found = asked.features("masks", model, MemoryImage(image, "d" * 64), 1.0, Times(METRICS))
    grids = asked.grids(model, found, ["blue", "red"], 1.0, Times(METRICS))
    assert grids["red"].min() > 5 > -5 > grids["blue"].max()
    tags = asked.features("tags", model, MemoryImage(image, "d" * 64), 1.0, Times(METRICS))
    ranked = asked.ranking(
        model, tags, lambda model, features: model.rank_features(features, ["blue", "red"]), 1.0, Times(METRICS)
    )
    assert [score.tag for score in ranked] == ["red", "blue"]
