"""Jobs wait while answers are computed, and never for ever."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from backend.right_of_way import MOST_WAITING, GiveWay, RightOfWay, _lock_path


class Clock:
    """Time that passes only where somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_training_waits_until_the_answer_is_there(tmp_path: Path, clock: Clock) -> None:
    server, answer = RightOfWay(tmp_path), contextlib.ExitStack()
    answer.enter_context(server.answering())

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.slept > 0.1:
            answer.close()

    give_way = GiveWay(tmp_path, clock=clock, sleep=sleep)
    clock.work(1.0)
    give_way()
    assert 0.1 < clock.slept < 0.12
    give_way()  # nobody is being answered
    assert clock.slept < 0.12


def test_nobody_waits_where_no_server_has_ever_answered(tmp_path: Path, clock: Clock) -> None:
    give_way = GiveWay(tmp_path / "nowhere", clock=clock, sleep=clock.sleep)
    clock.work(1.0)
    give_way()
    assert clock.slept == 0.0
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("step_s", [0.004, 0.1, 0.5])
def test_beside_a_server_that_is_never_idle_a_training_has_its_share(
    tmp_path: Path, clock: Clock, step_s: float
) -> None:
    give_way = GiveWay(tmp_path, clock=clock, sleep=clock.sleep)
    with RightOfWay(tmp_path).answering():
        for _ in range(500):
            clock.work(step_s)
            give_way()
    share = clock.slept / (clock.slept + 500 * step_s)
    assert share == pytest.approx(MOST_WAITING, abs=0.02)


def test_a_long_quiet_time_is_not_saved_up(tmp_path: Path, clock: Clock) -> None:
    give_way = GiveWay(tmp_path, clock=clock, sleep=clock.sleep)
    for _ in range(100):
        clock.work(1.0)
        give_way()
    with RightOfWay(tmp_path).answering():
        give_way()
    assert clock.slept == pytest.approx(2.0, abs=0.02)


def test_several_answers_are_waited_for_to_the_last(tmp_path: Path, clock: Clock) -> None:
    one, other = RightOfWay(tmp_path), RightOfWay(tmp_path)  # two server processes
    give_way = GiveWay(tmp_path, clock=clock, sleep=clock.sleep)

    def waits() -> bool:
        clock.work(0.1)
        before = clock.slept
        give_way()
        return clock.slept > before

    with one.answering():
        with one.answering(), other.answering():
            assert waits()
        assert waits()
    assert not waits()
    with other.answering():
        assert waits()


def hold(directory: Path, holding: object) -> None:
    with RightOfWay(directory).answering():
        holding.set()  # type: ignore[attr-defined]
        signal.pause()


def test_a_server_that_is_killed_holds_nothing_up(tmp_path: Path, clock: Clock) -> None:
    context = multiprocessing.get_context("spawn")
    holding = context.Event()
    server = context.Process(target=hold, args=(tmp_path, holding), daemon=True)
    server.start()
    assert holding.wait(60)
    give_way = GiveWay(tmp_path, clock=clock, sleep=clock.sleep)
    clock.work(0.1)
    give_way()
    waited = clock.slept
    assert waited > 0
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.join()
    clock.work(0.1)
    give_way()
    assert clock.slept == waited


def answer_without_a_lock(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Answers and trainings go on, and it is said once."""
    server = RightOfWay(directory)
    for _ in range(3):
        with server.answering():
            pass
    assert caplog.text.count("will not give way") == 1
    GiveWay(directory)()


def test_a_directory_that_cannot_be_written_costs_an_answer_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "locks").write_text("in the way")
    answer_without_a_lock(tmp_path, caplog)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_costs_an_answer_nothing(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    answer_without_a_lock(tmp_path, caplog)


def test_a_server_that_met_a_training_looking_holds_the_lock_with_its_next_answer(tmp_path: Path, clock: Clock) -> None:
    server, give_way = RightOfWay(tmp_path), GiveWay(tmp_path, clock=clock, sleep=clock.sleep)
    with server.answering():
        pass
    (path,) = (tmp_path / "locks").iterdir()
    first = contextlib.ExitStack()
    with path.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_EX)
        first.enter_context(server.answering())
    clock.work(1.0)
    give_way()
    assert clock.slept == 0.0
    with server.answering():  # the first one still lasts
        give_way()
        assert clock.slept > 0.0
    first.close()


def test_a_job_with_little_time_is_held_up_for_a_part_of_it(tmp_path: Path, clock: Clock) -> None:
    give_way = GiveWay(tmp_path, most_s=3.0, clock=clock, sleep=clock.sleep)
    with RightOfWay(tmp_path).answering():
        for _ in range(100):
            clock.work(1.0)
            give_way()
    assert clock.slept == pytest.approx(3.0, abs=0.02)


def test_machines_that_share_a_directory_do_not_wait_for_each_other(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RightOfWay(tmp_path).answering():
        (tmp_path / "boot").write_text("another machine")
        monkeypatch.setattr("backend.right_of_way._BOOT", tmp_path / "boot")
        give_way = GiveWay(tmp_path, clock=clock, sleep=clock.sleep)
        clock.work(1.0)
        give_way()
    assert clock.slept == 0.0
    assert "another" not in _lock_path(tmp_path).name
