"""Which task of a project is whose to pre-label: in Redis, one writer per task, and nobody's for ever.

Label Studio stores whatever prediction it is sent, twice where it is sent twice. Two write for a task: Label Studio
itself, from an answer of `/predict`, and a job, through the import route. So whoever is about to write takes the
task first, in one step that the other one sees:

- The server notes the tasks that an answer holds (`answer`), before the answer leaves.
- A job notes the tasks that it is about to import (`begin_import`), before it asks Label Studio which of them have
  their prediction already. What the server has answered lately it leaves alone and looks at again later.

Why no task gets two is in docs/decisions/one-writer-per-task.md.

Per project, under `vlm:prelabel:<project>:`

    ready       tasks to predict, by id; those that somebody waits for come first
    later       tasks to look at again, by the time from which on
    leases      tasks that a job works on, by the time at which its claim ends
    owners      the claims' owners, `<job id>:<random>`
    tries       how often a task's attempt has failed or died
    run         counts since the project had nothing to do
    failed      tasks given up in this run, with the reason
    pace        times and counts of the latest progress

and per version `importing:<version>` (owner and time), `answered:<version>` and `written:<version>` (times). Times
are Redis's own, so that the machines' clocks do not matter.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import redis
from redis.commands.core import Script

from backend import prelabel_scripts as scripts

Outcome = Literal["posted", "present"]
"""What became of a task: its prediction was imported, or there was nothing to import: Label Studio has one already, or
the task is no more."""

_CHUNK = 500
"""Tasks in one step: Redis does nothing else meanwhile."""


@dataclass(frozen=True)
class Patience:
    """How long the sides wait for each other, s.

    Attributes:
        lease_s: until the tasks of a job that gives no sign of life are another's.
        settle_s: an import whose outcome is not known has happened by then, or never will.
        answer_s: Label Studio has stored an answer of `/predict` by then, or never will.
        travel_s: a request of Label Studio's arrives at most so long after it chose the tasks.
        check_s: before looking again whether Label Studio has stored an answer.
        retry_s: before a task that failed is tried again.
    """

    lease_s: float = 60.0
    settle_s: float = 120.0
    answer_s: float = 600.0
    travel_s: float = 60.0
    check_s: float = 15.0
    retry_s: float = 30.0


@dataclass(frozen=True)
class Begun:
    """What a job may do with tasks that it has predicted.

    Attributes:
        own: import what Label Studio does not have.
        doubtful: another's import of them may still be under way: look, and import nothing.
        answered: the server has answered them; they come again later.
        lost: the claim has ended: they are another's.
    """

    own: list[int]
    doubtful: list[int]
    answered: list[int]
    lost: list[int]


@dataclass(frozen=True)
class Run:
    """How far a project is.

    Attributes:
        run_id: of the run.
        started_at: seconds since 1970.
        total: tasks asked for.
        counts: tasks by what became of them: "posted", "present", "failed".
        versions: predictions imported, by version.
        rate_per_s: tasks a second lately; None where nothing is known yet.
        label_studio_s: what jobs waited for Label Studio, in all; predicting goes on meanwhile.
        problem: why it does not get on now; "" when it does.
    """

    run_id: str
    started_at: float
    total: int
    counts: dict[str, int]
    versions: dict[str, int]
    rate_per_s: float | None
    label_studio_s: float
    problem: str

    @property
    def done(self) -> int:
        """Tasks that are settled, one way or the other."""
        return sum(self.counts.values())

    @property
    def seconds_left(self) -> float | None:
        """At the present rate."""
        return (self.total - self.done) / self.rate_per_s if self.rate_per_s else None


class Ledger:
    """The tasks of one project. Safe to share between threads and processes.

    Every call may raise `redis.RedisError`.
    """

    def __init__(
        self,
        connection: redis.Redis,
        project_id: int,
        *,
        patience: Patience | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """No request is made to Redis here.

        Args:
            connection: must return bytes.
            project_id: Label Studio's id.
            patience: default: its defaults.
            clock: seconds; default: Redis's.
        """
        self._redis = connection
        self.patience = patience or Patience()
        self._clock = clock
        self._base = f"vlm:prelabel:{project_id}"
        self._scripts: dict[str, Script] = {}

    def begin_run(self) -> str:
        """Begin a run where none is under way, before its tasks are known; its name either way."""
        return _text(self._call(scripts.BEGIN_RUN, _new_run_id()))

    # What there is to do ------------------------------------------------------------------------------------
    def add(self, task_ids: Iterable[int], *, urgent: bool = False) -> int:
        """Add tasks to predict; those that are known already stay where they are.

        Args:
            task_ids: Label Studio's ids.
            urgent: somebody waits for these: they come before the others.

        Returns:
            How many are new.
        """
        ids = list(task_ids)
        return sum(
            int(self._call(scripts.ADD, _new_run_id(), int(urgent), *ids[at : at + _CHUNK]))
            for at in range(0, len(ids), _CHUNK)
        )

    def ready(self) -> int:
        """Tasks that a job can take now, or soon."""
        return int(self._call(scripts.READY)[0])

    def next_due_s(self) -> float | None:
        """Seconds until a task can be taken: 0.0 now; None where the project has nothing to do."""
        ready, wait = self._call(scripts.READY)
        return 0.0 if ready else None if wait is None else float(wait)

    def drop(self) -> int:
        """Forget the tasks that no job works on; how many."""
        return int(self._call(scripts.DROP))

    # A job's side -------------------------------------------------------------------------------------------
    def take(self, owner: str, most: int) -> list[int]:
        """Claim tasks, by id; [] where none can be taken now.

        Tasks whose former attempts died come in smaller numbers, at last alone, and are given up after four.

        Args:
            owner: `<job id>:<random>`.
            most: tasks.
        """
        return _ints(self._call(scripts.TAKE, owner, most, self.patience.lease_s))

    def renew(self, owner: str) -> int:
        """Prolong all claims of an owner; how many it has."""
        return int(self._call(scripts.RENEW, owner, self.patience.lease_s))

    def release(self, job_id: str, *, died: bool = False) -> int:
        """Give back whatever a job holds.

        Args:
            job_id: of the job.
            died: it may have died of one of its tasks.
        """
        return int(self._call(scripts.RELEASE, f"{job_id}:", int(died)))

    def begin_import(self, owner: str, version: str, task_ids: Sequence[int]) -> Begun:
        """Take tasks for writing. What is `own` is settled by one of the calls below.

        Args:
            owner: of the claims.
            version: that the predictions carry.
            task_ids: that were predicted.
        """
        patience = self.patience
        said = self._call(
            scripts.BEGIN, owner, version, patience.answer_s, patience.settle_s, patience.check_s, *task_ids
        )
        by_code: dict[str, list[int]] = {"own": [], "doubt": [], "answered": [], "lost": []}
        for task_id, code in zip(task_ids, said, strict=True):
            by_code[_text(code)].append(task_id)
        return Begun(by_code["own"], by_code["doubt"], by_code["answered"], by_code["lost"])

    def sending(self, owner: str, version: str, task_ids: Sequence[int]) -> list[int]:
        """Right before tasks that are `own` are sent; those that still are. From now on their outcome is uncertain."""
        return _ints(self._call(scripts.SEND, owner, version, *task_ids))

    def abort_import(self, owner: str, version: str, task_ids: Sequence[int]) -> None:
        """Nothing was sent to Label Studio for these; they stay claimed."""
        self._call(scripts.ABORT, owner, version, *task_ids)

    def finish(self, owner: str, version: str, task_ids: Sequence[int], outcome: Outcome) -> list[int]:
        """Settle tasks.

        Returns:
            Those whose claim had ended before: another job may have written them too.
        """
        return _ints(self._call(scripts.FINISH, owner, version, outcome, *task_ids))

    def defer(self, owner: str, task_ids: Sequence[int], wait_s: float) -> None:
        """Give tasks back, for later. What was noted as being imported stays noted: its outcome is not known."""
        self._call(scripts.DEFER, owner, wait_s, *task_ids)

    def fail(self, owner: str, version: str, reasons: Mapping[int, str]) -> None:
        """Tasks that have no prediction: tried once more later, then given up."""
        pairs = [text for task_id, reason in reasons.items() for text in (task_id, reason)]
        self._call(scripts.FAIL, owner, version, self.patience.retry_s, *pairs)

    # The server's side --------------------------------------------------------------------------------------
    def answer(self, version: str, finished: Sequence[int], unfinished: Sequence[int], *, age_s: float) -> set[int]:
        """Before an answer of `/predict` leaves: note what it holds, and hand over what it does not.

        Args:
            version: that the answer's predictions carry.
            finished: tasks with a prediction in it.
            unfinished: tasks for the jobs.
            age_s: seconds since the request arrived.

        Returns:
            Finished tasks whose prediction must be withheld, for a job has written them since Label Studio chose
            them, or is writing them.
        """
        patience = self.patience
        since = age_s + patience.travel_s
        return set(
            _ints(
                self._call(
                    scripts.ANSWER,
                    _new_run_id(),
                    version,
                    since,
                    patience.answer_s,
                    patience.check_s,
                    len(finished),
                    *finished,
                    *unfinished,
                )
            )
        )

    # Progress -----------------------------------------------------------------------------------------------
    def note_waited(self, seconds: float) -> None:
        """Add to what jobs waited for Label Studio."""
        self._call(scripts.WAITED, repr(seconds))

    def setback(self, problem: str) -> int:
        """Say why it does not get on; forgotten when it does again.

        Returns:
            Setbacks in a row.
        """
        return int(self._call(scripts.SETBACK, problem))

    def run(self) -> Run | None:
        """How far the project is; None where it has nothing to do."""
        values, pace, now = self._call(scripts.RUN)
        return _run(values, pace, float(now)) if values else None

    def failed(self) -> dict[int, str]:
        """Tasks that were given up in this run, with the reason."""
        return {int(key): _text(value) for key, value in self._redis.hgetall(f"{self._base}:failed").items()}

    def end_run(self) -> tuple[Run, dict[int, str]] | None:
        """End the run if nothing is left to do.

        Returns:
            The run as it ended and the tasks that were given up, once: to one caller. None where there is more to do.
        """
        said = self._call(scripts.END)
        if not said:
            return None
        values, pace, now, failed = said
        return _run(values, pace, float(now)), {int(k): _text(v) for k, v in _pairs(failed)}

    def _call(self, script: str, *arguments: Any) -> Any:
        now = -1.0 if self._clock is None else self._clock()
        if script not in self._scripts:
            self._scripts[script] = self._redis.register_script(script)
        return self._scripts[script](keys=[self._base], args=[repr(now), *arguments])


def _new_run_id() -> str:
    return f"prelabel-{uuid.uuid4().hex[:12]}"


def _run(values: Sequence[Any], pace: Sequence[bytes], now: float) -> Run:
    fields = {_text(key): _text(value) for key, value in _pairs(values)}
    return Run(
        run_id=fields["id"],
        started_at=float(fields["started_at"]),
        total=int(fields.get("total", 0)),
        counts={name: int(fields.get(name, 0)) for name in ("posted", "present", "failed")},
        versions={key.removeprefix("version:"): int(n) for key, n in fields.items() if key.startswith("version:")},
        rate_per_s=_rate([json.loads(entry) for entry in pace], now),
        label_studio_s=float(fields.get("label_studio_s", 0.0)),
        problem=fields.get("problem", ""),
    )


def _rate(pace: Sequence[tuple[float, int]], now: float) -> float | None:
    """Tasks a second over the latest progress, newest first; a pause that lasts counts."""
    if len(pace) < 2:
        return None
    (newest_at, newest), (oldest_at, oldest) = pace[0], pace[-1]
    steps = (newest_at - oldest_at) / (len(pace) - 1)
    until = now if now - newest_at > 2 * steps else newest_at
    return (newest - oldest) / max(until - oldest_at, 1e-3)


def _pairs(flat: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _ints(values: Iterable[Any]) -> list[int]:
    return [int(value) for value in values]
