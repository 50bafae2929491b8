"""Which tasks a request names, from Label Studio, page by page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from backend.label_studio.client import LabelStudioClient
from backend.label_studio.task_filter import WITHOUT_PREDICTION, among, filter_items, parse_condition
from backend.prelabel_queue import PrelabelRequest

_AT_ONCE = 200
"""Ids in one address: proxies allow some kilobytes."""


def chosen_tasks(client: LabelStudioClient, project_id: int, request: PrelabelRequest) -> Iterator[int]:
    """Ids of the tasks that a request names; by id, or in the order of the tab.

    Raises:
        TaskFilterError: a condition that cannot be used.
        LabelStudioError: Label Studio is away or refuses.
    """
    conditions = []
    if request.conditions:
        parsed = [parse_condition(text) for text in request.conditions]
        conditions += filter_items(parsed, client.task_columns(project_id))
    if request.only_missing:
        conditions.append(dict(WITHOUT_PREDICTION))
    found: Iterable[int]
    if request.tab is None:
        found = (int(task["id"]) for task in client.matching_tasks(project_id, conditions))
        return islice(found, request.limit)
    # The whole tab first: its pages are those of the moment, and shift when what it shows changes.
    shown = list(dict.fromkeys(client.tasks_of_tab(project_id, request.tab)))

    def meeting() -> Iterator[int]:
        for at in range(0, len(shown), _AT_ONCE):
            ids = shown[at : at + _AT_ONCE]
            meet = {int(task["id"]) for task in client.matching_tasks(project_id, [among(ids), *conditions])}
            yield from (task_id for task_id in ids if task_id in meet)

    return islice(meeting() if conditions else shown, request.limit)
