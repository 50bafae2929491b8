"""How long Label Studio waits for `/webhook`: `python -m benchmarks.webhook`.

Events come at a fixed rate whether or not the former ones were answered, each over a connection of its own, as Label
Studio sends them. First alone, then while batches are predicted. `--keep` writes benchmarks/serving.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from backend.label_studio.brush import encode_mask
from benchmarks.server import running_backend
from benchmarks.serving import Latencies, keep, machine, predicting, table

TITLE = "Webhooks"
MOST_MS = 50.0


def event(number: int, strokes: int, size: int) -> bytes:
    """An annotation with ragged brush strokes, as Label Studio sends it."""
    rng = np.random.default_rng(number)
    result = []
    for stroke in range(strokes):
        y, x = np.mgrid[0:size, 0:size]
        edge = size / 4 + np.cumsum(rng.normal(0, 1.0, size))[y]
        value = {"format": "rle", "rle": encode_mask((x - size / 2) ** 2 + (y - size / 2) ** 2 < edge**2)}
        value["brushlabels"] = ["circle"]
        result.append(
            {"id": f"r{stroke}", "from_name": "shapes", "to_name": "image", "type": "brushlabels", "value": value}
        )
    body: dict[str, Any] = {
        "action": "ANNOTATION_CREATED",
        "project": {"id": 1 + number % 3, "title": "a project", "label_config": "<View/>" * 50},
        "task": {"id": number, "data": {"image": "/data/upload/1/a.png"}},
        "annotation": {"id": number, "result": result},
    }
    return json.dumps(body).encode()


async def load(address: str, bodies: list[bytes], rate: float, seconds: float) -> tuple[Latencies, float]:
    """Send events at a rate; the latencies, and how late the client itself was at the most, s."""
    host, port = urlsplit(address).hostname, urlsplit(address).port
    latencies: list[float] = []
    late: list[float] = []

    async def send(body: bytes, due: float) -> None:
        begun = time.perf_counter()
        late.append(begun - due)
        reader, writer = await asyncio.open_connection(host, port)
        head = f"POST /webhook HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
        latencies.append(time.perf_counter() - begun)
        assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")), answer

    started = time.perf_counter()
    running = []
    for index in range(round(rate * seconds)):
        due = started + index / rate
        await asyncio.sleep(due - time.perf_counter())
        running.append(asyncio.create_task(send(bodies[index % len(bodies)], due)))
    await asyncio.gather(*running)
    return Latencies(latencies), max(late)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--rate", type=float, default=100.0, help="events a second (default 100)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each case (default 20)")
    parser.add_argument("--batch", type=int, default=32, help="pictures of one /predict (default 32)")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/serving.md")
    parser.add_argument("--note", default="", help="one more fact about the machine, for the page")
    arguments = parser.parse_args()
    facts = machine(arguments.note)
    print(facts, flush=True)
    cases = {
        "small events": [event(number, 2, 256) for number in range(8)],
        "large events": [event(number, 12, 1024) for number in range(8)],
    }
    rows: list[list[str]] = []
    with running_backend(arguments.checkpoint) as (client, _):
        address = str(client.base_url).rstrip("/")
        for name, bodies in cases.items():
            size = f"{sum(map(len, bodies)) / len(bodies) / 1024:.0f} KiB"
            for busy in (False, True):
                if busy:
                    with predicting(address, arguments.batch) as done:
                        time.sleep(2)  # the first batch is under way
                        began = time.perf_counter()
                        latencies, late = asyncio.run(load(address, bodies, arguments.rate, arguments.seconds))
                        took = time.perf_counter() - began
                    beside = f"{done[0] / took:.1f} pictures/s"
                else:
                    latencies, late = asyncio.run(load(address, bodies, arguments.rate, arguments.seconds))
                    beside = "nothing"
                p99 = 1000 * latencies.quantile(0.99)
                verdict = "reached" if p99 <= MOST_MS else "MISSED"
                rows.append([name, size, beside, *latencies.cells(), f"{1000 * late:.1f}", verdict])
                print("  ".join(rows[-1]), flush=True)
    head = [
        "events",
        "size",
        "beside them",
        "p50 ms",
        "p99 ms",
        "longest ms",
        "client late ms",
        f"p99 <= {MOST_MS:.0f} ms",
    ]
    shown = table(head, rows)
    print("\n" + shown)
    if arguments.keep:
        about = (
            f"{arguments.rate:g} events a second for {arguments.seconds:g} s in each case, over three projects; the "
            f"batches have {arguments.batch} new pictures each."
        )
        keep(TITLE, [about, facts, shown])


if __name__ == "__main__":
    main()
