"""One whole job in a process of its own: prints its seconds and its peak memory as JSON.

Run as `python -m benchmarks.child STORE OUTPUT THREADS WARM_UP_STORE`. A small job comes first,
so that imports and the making of compiled code are not counted. They would make a large job
look cheaper beside a small one than it is.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from benchmarks import ours
from benchmarks.measure import equal_threads
from pipeline.execution.memory import peak_memory


def main(store: str, output: str, threads: str, warm_up_store: str) -> None:
    """Run the job on one store after a job on another."""
    folder = Path(output)
    with equal_threads(int(threads)):
        ours.run_job(Path(warm_up_store), folder / "warm-up", int(threads))
        started = time.perf_counter()
        run = ours.run_job(Path(store), folder / "run", int(threads))
        seconds = time.perf_counter() - started
    found = {
        "seconds": seconds,
        "peak_memory": peak_memory(),
        "tested": run.metrics["l2"]["count"],
        "digest": run.manifest["digests"]["run"],
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
