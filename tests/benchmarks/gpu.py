"""`make gpu`: the kernels of a GPU, checked bit for bit, then measured against its limits.

    PYTHONPATH=.:tests python3 -m benchmarks.gpu [--json FILE] [--seconds N] [--no-tuning]

Takes less than six minutes, needs a GPU of NVIDIA with Python 3.11 or newer, NumPy, numba, torch
and Triton, and neither a network, an installation, nor data. Without a GPU it says so, and runs the
same checks and rows small, with kernels that are interpreted: their figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.kernels import backends

SECONDS = 330


def main(words: list[str] | None = None) -> int:
    """Check and measure; return 1 where a bit differs, or something failed."""
    parser = argparse.ArgumentParser(prog="make gpu", description="Check and measure a GPU.")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where figures go")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="begin no row after these")
    parser.add_argument("--no-tuning", action="store_true", help="try no other block sizes")
    asked = parser.parse_args(words)
    there = backends.has_cuda_driver()
    if not there:
        print("no GPU on this machine: the kernels are interpreted, on small images, and the "
              "figures mean nothing")  # fmt: skip
        os.environ.setdefault("TRITON_INTERPRET", "1")
    device = "cuda" if there else "triton:cpu"
    try:
        use = backends.load(device)
    except ConfigError as error:
        print(error)
        return 1
    print(f"device {use.description}")
    if use.device.startswith("torch:"):
        return 1  # plain torch, and the line before says why
    return _run(device, asked, use.description)


def _run(device: str, asked: argparse.Namespace, description: str) -> int:
    # what imports Triton, after it was said how
    rows = importlib.import_module("benchmarks.gpu_rows")
    checks = importlib.import_module("benchmarks.gpu_checks")
    large, begun = device == "cuda", time.monotonic()
    bench = rows.Bench(device, rows.LARGE if large else rows.SMALL)
    result: dict[str, Any] = {
        "device": description, "interpreted": not large, **rows.device_limits(), "failed": [],
        "rows": [], "tuning": [],
    }  # fmt: skip
    count = 0
    for name, check in checks.checks(device, checks.LARGE if large else checks.SMALL):
        count += 1
        _note_failure(result, name, check)
    for name, check in checks.checks("torch:cuda", checks.SMALL) if large else ():
        count += 1
        _note_failure(result, f"plain torch, {name}", check)
    seconds = time.monotonic() - begun
    print(f"{count} checks against NumPy in {seconds:.0f} s, {len(result['failed'])} failed")
    limits = rows.limits(bench)
    result["limits"] = limits
    copied, done = limits["bytes"] / 1e9, limits["operations"] / 1e12
    print(f"a copy on the device reads and writes {copied:,.4g} GB/s")
    print(f"torch._int_mm does {done:,.4g} T operations a second on bytes")
    nominal = next((rate for name, rate in rows.NOMINAL.items() if name in description), None)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    sections: list[tuple[str, Callable[[], Iterable[Any]]]] = [
        ("rows", lambda: rows.sweeps(bench, limits["bytes"])),
        ("rows", lambda: rows.from_host(bench)),
        ("rows", lambda: rows.neighbours(bench, limits["operations"], nominal)),
        ("rows", lambda: rows.against_the_cpu(bench, threads)),
    ]
    if not asked.no_tuning:
        sections.append(("tuning", lambda: rows.tuned(bench)))
    for kind, section in sections:
        if time.monotonic() - begun > asked.seconds:
            print(f"left out what follows, after {asked.seconds:.0f} s")
            break

        def measure(kind: str = kind, section: Callable[[], Iterable[Any]] = section) -> None:
            for row in section():
                result[kind].append(asdict(row))
                _print(row)

        _note_failure(result, f"the rows of {kind}", measure)
    result["seconds"] = round(time.monotonic() - begun, 1)
    asked.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{result['seconds']:.0f} s; figures in {asked.json}")
    return 1 if result["failed"] else 0


def _print(row: Any) -> None:
    ratio = f"{row.ratio:8.3f}" if row.ratio else 8 * " "
    asked = f"of {row.asked:g} asked for" if row.asked is not None else ""
    print(f"{row.name:44} {row.against:34} {ratio} {asked:18} {row.note}", flush=True)


def _note_failure(result: dict[str, Any], name: str, function: Callable[[], None]) -> None:
    try:
        function()
    except Exception as error:  # the others are worth having
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        result["failed"].append(f"{name}: {text}")
        print(f"FAILED {name}: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
