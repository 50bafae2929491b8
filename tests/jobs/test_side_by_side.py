"""Fits of one training on several devices; here each device is a part of the CPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch

from backend.settings import Settings, SettingsError, load_settings
from backend.versions import VersionStore
from tests.jobs.label_studio import corrected_project, serve
from tests.jobs.one_training import HEADED, train
from training_jobs.devices import training_devices
from training_jobs.errors import CannotTrainError
from training_jobs.fit_progress import FitProgress
from training_jobs.side_by_side import AbandonedError, Place, Places

CPU = torch.device("cpu")
LONGEST_S = 60.0


@contextmanager
def own_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def running() -> int:
    return sum(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())


@pytest.mark.parametrize("places", [1, 2, 3])
def test_results_come_in_order_and_no_device_is_taken_twice(places: int) -> None:
    taken: dict[str, int] = {"now": 0, "most": 0}
    lock = threading.Lock()

    def fit(number: int, place: Place) -> int:
        with lock:
            taken["now"] += 1
            taken["most"] = max(taken["most"], taken["now"])
        assert place.device == CPU
        with lock:
            taken["now"] -= 1
        return number

    fits = [lambda place, number=number: fit(number, place) for number in range(20)]
    assert list(Places([CPU] * places).each(fits)) == list(range(20))
    assert taken["most"] <= places


def test_as_many_run_at_a_time_as_there_are_devices() -> None:
    all_of_them = threading.Barrier(3, timeout=LONGEST_S)
    assert sorted(Places([CPU] * 3).each([lambda place: all_of_them.wait()] * 3)) == [0, 1, 2]


def test_each_device_has_its_name() -> None:
    devices = [torch.device("meta"), CPU]
    both = threading.Barrier(2, timeout=LONGEST_S)

    def fit(place: Place) -> str:
        both.wait()
        return place.device.type

    assert sorted(Places(devices).each([fit, fit])) == ["cpu", "meta"]


def test_the_cores_are_divided_and_given_back() -> None:
    with own_threads(4):
        assert list(Places([CPU] * 2).each([lambda place: torch.get_num_threads()] * 2)) == [2, 2]
        assert list(Places([CPU] * 8).each([lambda place: torch.get_num_threads()] * 2)) == [1, 1]
        assert torch.get_num_threads() == 4
        assert list(Places([CPU]).each([lambda place: torch.get_num_threads()])) == [4]


def test_who_does_not_want_the_rest_ends_what_runs() -> None:
    ended: list[str] = []
    runs = threading.Event()

    def endless(place: Place) -> None:
        runs.set()
        try:
            while not place.abandoned.wait(0.01):
                pass
            place.check()
        except AbandonedError:
            ended.append("abandoned")
            raise

    with closing(Places([CPU] * 2).each([lambda place: "first", endless])) as results:
        assert next(results) == "first"
        assert runs.wait(LONGEST_S)
    assert ended == ["abandoned"]
    assert running() == 0


def test_an_error_ends_the_others() -> None:
    runs = threading.Event()

    def broken(place: Place) -> None:
        assert runs.wait(LONGEST_S)
        raise ValueError("broken")

    def endless(place: Place) -> None:
        runs.set()
        assert place.abandoned.wait(LONGEST_S)
        place.check()

    with pytest.raises(ValueError, match="broken"):
        list(Places([CPU] * 2).each([broken, endless]))
    assert running() == 0


def test_what_ends_the_job_ends_all_fits_whichever_of_them_was_told() -> None:
    class LostError(Exception): ...

    calls = threading.Semaphore(5)

    def tick(phase: str, share: float, loss: float | None) -> None:
        if not calls.acquire(blocking=False):
            raise LostError

    progress = FitProgress(tick, HEADED, 2, ["head"])

    def fit(phase: str, place: Place) -> None:
        with progress.of(phase, "head", place) as told:
            while True:
                told(0.5, 1.0)

    with pytest.raises(LostError):
        list(Places([CPU] * 2).each([lambda place: fit("one", place), lambda place: fit("two", place)]))


def test_progress_of_several_fits_only_grows() -> None:
    shares: list[float] = []
    progress = FitProgress(lambda phase, share, loss: shares.append(share), HEADED, 3, ["head", "conditions"])
    with progress.of("one", "head", Place(CPU, threading.Event())) as one:
        with progress.of("two", "conditions", Place(CPU, threading.Event())) as two:
            one(0.9, 1.0)
            two(0.1, 1.0)
            one(1.0, 1.0)
            two(0.5, 1.0)
        progress.alive()
    progress.end()
    assert shares == sorted(shares)
    assert len(set(shares)) == len(shares)
    assert shares[-1] == 1.0


def test_a_training_on_two_devices_learns_what_one_learns(settings: Settings, tmp_path: Path) -> None:
    def learned(name: str, threads: int, devices: str | None) -> dict[str, torch.Tensor]:
        own = settings.model_copy(update={"data_dir": tmp_path / name, "train_devices": devices})
        config = HEADED.model_copy(update={"decoder": HEADED.decoder.model_copy(update={"threads": threads})})
        with serve(corrected_project(16)) as label_studio:
            result = train(label_studio, own, config)
        assert result.version is not None, result.reason
        return VersionStore(own.data_dir).get(7, result.version).load_weights()

    one, two = learned("one", 1, None), learned("two", 2, "cpu,cpu")
    assert one
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_devices_that_are_not_there_are_named() -> None:
    assert training_devices(Settings(train_devices=None)) == ()
    assert training_devices(Settings(train_devices="cpu, cpu")) == (CPU, CPU)
    everything = training_devices(Settings(train_devices="all"))
    assert len(everything) == torch.cuda.device_count()
    assert training_devices(Settings(train_devices=" all ")) == everything
    with pytest.raises(CannotTrainError, match=r"cuda:63.*is not there.*use all"):
        training_devices(Settings(train_devices="cpu,cuda:63"))


@pytest.mark.parametrize("wrong", ["auto", "cuda:0,", "gpu", "cuda:0;cuda:1", "all,cpu"])
def test_names_that_are_none_stop_the_start(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_TRAIN_DEVICES", wrong)
    with pytest.raises(SettingsError, match="VLM_TRAIN_DEVICES"):
        load_settings()
