"""Many clients at once against one: `python -m benchmarks.clients`.

Each client asks for one new picture after the other, as annotators do who open tasks; the clients are spread over three
projects with different labelling configs. One client and many take turns in one run. `--keep` writes
benchmarks/serving.md. Exit code 0 only if no request failed and many clients were answered at least as fast.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from backend.demo.project import label_config
from benchmarks.pairing import Samples, ratios
from benchmarks.server import running_backend, tasks
from benchmarks.serving import Latencies, keep, machine, table

TITLE = "Many clients"
LEAST_RATIO = 1.0
CONFIGS = (
    label_config(),
    """<View><Image name="image" value="$image"/><BrushLabels name="marks" toName="image" model_score_threshold="0.4">
    <Label value="Left" prompt="left circle | left square"/><Label value="Right" prompt="right circle"/></BrushLabels>
    </View>""",
    """<View><Image name="image" value="$image"/><RectangleLabels name="boxes" toName="image">
    <Label value="star"/><Label value="heart"/><Label value="cross"/></RectangleLabels><Choices name="c" toName="image">
    <Choice value="a red circle"/><Choice value="a blue square"/><Choice value="a green heart"/></Choices></View>""",
)


@dataclass(frozen=True)
class Round:
    """What some clients got in one stretch of time."""

    rate: float
    latencies: list[float]


def pictures() -> Iterator[dict[str, Any]]:
    """Tasks with pictures that the server has never seen, made before they are needed."""
    for seed in itertools.count(2_000_000, 64):
        yield from tasks(seed, 64)


async def ask(address: str, clients: int, seconds: float, made: list[dict[str, Any]]) -> Round:
    """Let clients ask for as long as `seconds`; the tasks are taken from `made`."""
    latencies: list[float] = []
    ends = time.perf_counter() + seconds
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=120.0, trust_env=False, limits=limits) as http:

        async def client(number: int) -> None:
            project = number % len(CONFIGS)
            while time.perf_counter() < ends:
                body = {"tasks": [made.pop()], "project": f"{project + 1}.17", "label_config": CONFIGS[project]}
                begun = time.perf_counter()
                reply = await http.post("/predict", json=body)
                latencies.append(time.perf_counter() - begun)
                (item,) = reply.raise_for_status().json()["results"]
                assert "result" in item, item

        begun = time.perf_counter()
        await asyncio.gather(*(client(number) for number in range(clients)))
        return Round(len(latencies) / (time.perf_counter() - begun), latencies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0, help="of one turn (default 10)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default 3)")
    parser.add_argument("--most", type=int, default=100, help="pictures a second to be prepared for (default 100)")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/serving.md")
    parser.add_argument("--note", default="", help="one more fact about the machine, for the page")
    arguments = parser.parse_args()
    facts = machine(arguments.note)
    print(facts, flush=True)
    source = pictures()
    rounds: dict[int, list[Round]] = {1: [], arguments.clients: []}
    with running_backend(arguments.checkpoint) as (client, _):
        address = str(client.base_url).rstrip("/")
        for project, config in enumerate(CONFIGS, start=1):
            body = {"project": f"{project}.17", "schema": config, "extra_params": None}
            client.post("/setup", json=body).raise_for_status()
        for turn in range(arguments.rounds + 1):
            for clients, results in rounds.items():
                made = list(itertools.islice(source, round(arguments.most * arguments.seconds)))
                result = asyncio.run(ask(address, clients, arguments.seconds if turn else 2.0, made))
                if turn:  # the first one warms up
                    results.append(result)
                    print(f"  {clients:2} clients  {result.rate:.1f} pictures/s", flush=True)
    rates = {clients: Samples(tuple(result.rate for result in results)) for clients, results in rounds.items()}
    ratio = ratios(rates[arguments.clients], rates[1])
    rows = []
    for clients, results in rounds.items():
        latencies = Latencies([value for result in results for value in result.latencies])
        rows.append([str(clients), str(rates[clients]), *latencies.cells(), str(len(latencies.values))])
    shown = table(["clients", "pictures/s, median (least-most)", "p50 ms", "p99 ms", "longest ms", "answers"], rows)
    verdict = "reached" if ratio.median >= LEAST_RATIO else "MISSED"
    said = (
        f"{arguments.clients} clients / one client: {ratio} times the pictures, at least {LEAST_RATIO:g}: {verdict}. "
    )
    said += "No request failed."
    print(f"\n{shown}\n\n{said}")
    if arguments.keep:
        about = (
            f"{arguments.rounds} turns of {arguments.seconds:g} s each; one picture a request, every picture new; "
            "three projects: brush labels with choices, brush labels with alternatives, rectangles with choices."
        )
        keep(TITLE, [about, facts, shown, said])
    sys.exit(0 if ratio.median >= LEAST_RATIO else 1)


if __name__ == "__main__":
    main()
