"""No task gets two predictions of a version, whoever writes, dies or is slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import redis

from backend.prelabel_ledger import Ledger
from tests.jobs.one_writer import PATIENCE, play
from tests.private_redis import private_redis

STORIES = 250


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with private_redis(tmp_path_factory.mktemp("ledger")) as connected:
        yield connected


@pytest.mark.parametrize("block", range(5))
def test_no_task_gets_two_and_all_that_were_asked_for_get_one(connection: redis.Redis, block: int) -> None:
    for seed in range(block * STORIES // 5, (block + 1) * STORIES // 5):
        for label_studio in play(connection, seed):
            twice = {task: n for task, n in Counter(t for _, t in label_studio.predictions).items() if n > 1}
            assert not twice, f"seed {seed}"
        ledger = Ledger(connection, 1, patience=PATIENCE, clock=lambda: 0.0)
        run, failed = ledger.run(), ledger.failed()
        assert run is None or run.done == run.total, f"seed {seed}"
        assert label_studio.promised <= label_studio.having() | set(failed), f"seed {seed}"
