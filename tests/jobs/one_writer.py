"""Writers of one project's predictions, interleaved at random: a world to check "no task gets two" in.

Every actor (a job, a request of Label Studio's, Label Studio's own work on an import) is a thread, but only one of them
runs at a time: whenever it calls Redis or Label Studio it stops, and chance chooses who goes on, whether time passes,
and whether somebody is killed. So a seed gives one interleaving, and always the same. What the law takes for granted
(`Patience`) holds in it as deadlines: by then an actor goes on.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from backend.label_studio.errors import LabelStudioRejectedError, LabelStudioServerError, LabelStudioUnreachableError
from backend.prelabel_ledger import Ledger, Patience
from training_jobs.prelabel_writer import PredictionWriter

VERSION = "demo-p1-v000-12345678"
PATIENCE = Patience(lease_s=60, settle_s=60, answer_s=600, travel_s=60, check_s=15, retry_s=30)


class Killed(BaseException):
    """kill -9: nothing more is said to anybody."""


@dataclass(eq=False)
class Actor:
    """A thread that runs when it is its turn."""

    name: str
    work: Callable[[], None]
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    killed: bool = False
    over: bool = False
    mortal: bool = True
    asleep_until: float = 0.0
    due: float | None = None
    error: BaseException | None = None


class World:
    """The clock, the actors and who goes on."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 1_000_000.0
        self.actors: list[Actor] = []
        self.steps = 0
        self._back = threading.Semaphore(0)
        self._local = threading.local()

    def start(self, name: str, work: Callable[[], None], *, mortal: bool = True) -> Actor:
        actor = Actor(name, work, mortal=mortal)

        def run() -> None:
            self._local.actor = actor
            actor.turn.acquire()
            try:
                if not actor.killed:
                    work()
            except Killed:
                pass
            except BaseException as error:
                actor.error = error
            actor.over = True
            self._back.release()

        self.actors.append(actor)
        threading.Thread(target=run, daemon=True).start()
        return actor

    def pause(self, seconds: float = 0.0, *, due: float | None = None) -> None:
        """Somebody else may go on now; the caller not before so many seconds have passed, and not after `due`."""
        actor: Actor = self._local.actor
        actor.asleep_until = self.now + seconds if due is None else min(self.now + seconds, due)
        actor.due = due
        self._back.release()
        actor.turn.acquire()
        if actor.killed:
            raise Killed

    def run(self, *, kill_rate: float, leap_rate: float) -> None:
        """Until every actor is over."""
        while living := [actor for actor in self.actors if not actor.over]:
            self.steps += 1
            assert self.steps < 50_000, [actor.name for actor in living]
            awake = [actor for actor in living if actor.asleep_until <= self.now]
            if not awake:
                self.now = min(actor.asleep_until for actor in living)
                continue
            pressing = [actor for actor in living if actor.due is not None and actor.due <= self.now]
            actor = self.chance.choice(pressing or awake)
            if self.chance.random() < leap_rate:
                # Most delays are short; a machine that sleeps outlasts any lease.
                leap_s = self.chance.choice([0.1, 1.0, 5.0, 20.0, 70.0])
                self.now = min([self.now + leap_s, *(one.due for one in living if one.due is not None)])
            if actor.mortal and self.chance.random() < kill_rate:
                actor.killed = True
            actor.turn.release()
            self._back.acquire()
            if actor.error is not None:
                raise actor.error


class FakeLabelStudio:
    """Stores what it is sent, twice where it is sent twice; slow at times, and killed clients do not stop it."""

    def __init__(self, world: World, tasks: Sequence[int]) -> None:
        self.world = world
        self.tasks = set(tasks)
        self.predictions: list[tuple[int, int]] = []
        self.next_id = 1
        self.refused: set[int] = set()
        self.promised: set[int] = set()
        self.faults = 0.1

    def having(self) -> set[int]:
        return {task for _, task in self.predictions}

    def store(self, task_ids: Sequence[int]) -> None:
        for task in task_ids:
            self.predictions.append((self.next_id, task))
            self.next_id += 1

    # What PredictionWriter calls ---------------------------------------------------------------------------
    def matching_tasks(self, project_id: int, conditions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        self.world.pause()
        if self.world.chance.random() < self.faults:
            raise LabelStudioUnreachableError("away")
        (asked,) = [set(condition["value"]) for condition in conditions if condition["operator"] == "in_list"]
        found = asked & self.tasks
        if any(condition["operator"] == "contains" for condition in conditions):
            found &= self.having()
        self.world.pause()
        return [{"id": task} for task in sorted(found)]

    def import_predictions(self, project_id: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        ids = [int(prediction["task"]) for prediction in predictions]
        sent_at = self.world.now
        self.world.pause(due=sent_at + 10)
        if set(ids) & self.refused or not set(ids) <= self.tasks:
            raise LabelStudioRejectedError("a value is wrong", status=400)
        fate = self.world.chance.random()
        if fate < self.faults / 2:
            raise LabelStudioUnreachableError("it never arrived")
        done = threading.Event()

        def commit() -> None:
            self.world.pause(self.world.chance.choice([0.0, 0.5, 10.0, 45.0]), due=sent_at + PATIENCE.settle_s - 1)
            self.store(ids)
            done.set()

        self.world.start("import", commit, mortal=False)
        if fate < self.faults:
            self.world.pause(1.0)
            raise LabelStudioUnreachableError("no answer in time")
        while not done.is_set():
            self.world.pause(0.5)
        if fate < 1.5 * self.faults:
            raise LabelStudioServerError("the counters could not be updated", status=500)
        return len(ids)

    def task_predictions(self, task_id: int) -> list[dict[str, Any]]:
        self.world.pause()
        return [{"id": key, "model_version": VERSION} for key, task in self.predictions if task == task_id]

    def delete_prediction(self, prediction_id: int) -> None:
        self.world.pause()
        self.predictions = [entry for entry in self.predictions if entry[0] != prediction_id]


class SteppedLedger(Ledger):
    """A ledger in the world's time, between whose steps others may go on."""

    world: World

    def _call(self, script: str, *arguments: Any) -> Any:
        self.world.pause()
        return super()._call(script, *arguments)


@dataclass
class Play:
    """Jobs and requests for predictions on one project."""

    world: World
    label_studio: FakeLabelStudio
    connection: redis.Redis

    def ledger(self) -> Ledger:
        found = SteppedLedger(self.connection, 1, patience=PATIENCE, clock=lambda: self.world.now)
        found.world = self.world
        return found

    def job(self, name: str) -> None:
        """Claim, predict and write until there is nothing, as `training_jobs.prelabel_stint` does."""
        ledger, world = self.ledger(), self.world
        writer = PredictionWriter(
            1, self.label_studio, ledger, f"{name}:x", one_at_a_time=contextlib.nullcontext, sleep=lambda _: None
        )
        try:
            while claimed := ledger.take(f"{name}:x", 4):
                world.pause(world.chance.choice([0.1, 1.0, 10.0]))  # predicting
                failing = {task for task in claimed if world.chance.random() < 0.05}
                writer.add(
                    VERSION,
                    {
                        task: {"error": "broken"} if task in failing else {"result": [], "score": 1.0}
                        for task in claimed
                    },
                )
                if world.chance.random() < 0.7:
                    writer.flush()
            writer.flush()
        except (LabelStudioUnreachableError, LabelStudioServerError):
            pass
        ledger.release(name)

    def retrieve(self, tasks: Sequence[int], finished_share: float) -> None:
        """Label Studio asks the backend for predictions and stores what it gets."""
        world, label_studio = self.world, self.label_studio
        # Not stepped: between the clock's reading and the note in Redis a server does not sleep.
        ledger = Ledger(self.connection, 1, patience=PATIENCE, clock=lambda: world.now)
        chosen = [task for task in tasks if task not in label_studio.having()]
        chosen_at = world.now
        world.pause(world.chance.choice([0.0, 1.0, 30.0]), due=chosen_at + PATIENCE.travel_s - 1)
        arrived = world.now
        world.pause(world.chance.choice([0.0, 5.0, 80.0]))
        finished = [task for task in chosen if world.chance.random() < finished_share]
        unfinished = [task for task in chosen if task not in finished]
        withheld = ledger.answer(VERSION, finished, unfinished, age_s=world.now - arrived)
        label_studio.promised |= set(unfinished)
        answered_at = world.now

        def store() -> None:
            for task in finished:
                if task in withheld:
                    continue
                world.pause(world.chance.choice([0.0, 0.1, 2.0]), due=answered_at + PATIENCE.answer_s - 1)
                label_studio.store([task])

        if world.chance.random() < 0.8:  # else it has given up, and drops the answer
            world.start("store", store, mortal=False)


def play(connection: redis.Redis, seed: int) -> Iterator[FakeLabelStudio]:
    """One random story, then all that is left is done in peace; yields Label Studio after both."""
    connection.flushall()
    world = World(seed)
    tasks = list(range(1, world.chance.randint(3, 14)))
    label_studio = FakeLabelStudio(world, tasks)
    story = Play(world, label_studio, connection)
    asked = [task for task in tasks if world.chance.random() < 0.7]
    if world.chance.random() < 0.3:
        label_studio.store(world.chance.sample(tasks, len(tasks) // 4))

    def ask() -> None:
        world.pause(world.chance.choice([0.0, 1.0, 20.0]))
        label_studio.promised |= set(asked)
        story.ledger().add(asked)

    world.start("ask", ask, mortal=False)
    for number in range(world.chance.randint(1, 4)):
        pause_s = world.chance.choice([0.0, 5.0, 30.0, 100.0, 700.0])

        def later(name: str = f"job{number}", pause_s: float = pause_s) -> None:
            world.pause(pause_s)
            story.job(name)

        world.start(f"job{number}", later)
    # One at a time: two at once for the same task is a race of Label Studio's own.
    asking = world.chance.randint(0, 3)

    def retrieve() -> None:
        for _ in range(asking):
            world.pause(world.chance.choice([0.0, 3.0, 50.0, 650.0]))
            story.retrieve(tasks, world.chance.choice([0.0, 0.5, 1.0]))
            while any(actor.name == "store" and not actor.over for actor in world.actors):
                world.pause(1.0)

    world.start("retrieve", retrieve)
    world.run(kill_rate=0.02, leap_rate=0.1)
    yield label_studio

    label_studio.faults = 0.0
    ledger = Ledger(connection, 1, patience=PATIENCE, clock=lambda: world.now)
    for number in range(100):
        wait_s = ledger.next_due_s()
        if wait_s is None:
            break
        world.now += wait_s + 0.001
        world.start("job", lambda number=number: story.job(f"last{number}"), mortal=False)  # type: ignore[misc]
        world.run(kill_rate=0.0, leap_rate=0.0)
    assert ledger.next_due_s() is None
    yield label_studio
