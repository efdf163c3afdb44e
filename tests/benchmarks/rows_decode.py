"""Taking in a folder of JPEG files, against decoding the same files with Pillow and no more.

Ours reads, decodes, hashes, compresses and writes a store; Pillow, in a pool of processes that is
started before anything is timed, leaves the pixels where they are. What each part takes is measured
too, one after another in one thread: what must be done, whatever else is saved, is to read, decode,
hash and write each image once, on all cores all the time. It is written to memory that the system
has used before. A virtual machine that gives unused memory back to its host, as between two turns,
takes 0.2 ms an image more to get it again: that is in the time of a turn, and not in the floor.
"""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image

import pipeline
from benchmarks import ours
from benchmarks.compare import require_equal
from benchmarks.images import scramble
from benchmarks.machine import cores
from benchmarks.measure import Contestant, MismatchError, SkippedError, race
from benchmarks.results import Row, note_row, speed_row
from benchmarks.workbench import GIGABYTE, Workbench

OURS = "pixsim"
POOL = "decoding alone, Pillow in a process a core"
WANTED = 0.65

SIDE = 256
CHANNELS = 3
QUALITY = 90
CLASSES = 10
SPLIT = "train"
# One for every 30 images of the set that other rows read.
PART = 30
FEWEST = 200
# A file has about 24 kB, as photographs of this size and quality have.
FILE_BYTES = 24_000
# Files that a process of the pool is given at once, and images that are compared.
PER_TASK = 100
COMPARED = 20
# Of so many files the parts are measured; these must be done, the table could be another.
PARTED, PARTED_TURNS = 1024, 3
NEEDED = ("reading", "decoding", "hashing", "writing")

# Smooth fields: values at so many points a side, each wave half as strong as the one before.
POINTS = (4, 8, 16, 32, 64, 128)
STRENGTH = 30.0
FIELDS = 8
NOISE = 8.0

Floats = npt.NDArray[np.float32]


def rows(bench: Workbench) -> Iterator[Row]:
    """Measure a folder of files, each turn into a store that is not there yet."""
    count = max(FEWEST, bench.count // PART)
    folder = make_files(bench.folder, count, bench.threads)
    files = sorted(folder.rglob("*.jpg"))
    store = bench.folder / f"{folder.name}.zarr"
    shutil.rmtree(store, ignore_errors=True)
    tasks = [files[start : start + PER_TASK] for start in range(0, len(files), PER_TASK)]
    with multiprocessing.get_context("spawn").Pool(cores()) as pool:
        contestants = [
            Contestant(
                OURS,
                lambda: ours.ingest_folder(folder, store),
                after=lambda: shutil.rmtree(store, ignore_errors=True),
            ),
            Contestant(POOL, lambda: sum(pool.map(decode_files, tasks, chunksize=1))),
        ]

        def check(results: Mapping[str, Any]) -> None:
            require_equal(POOL, results[POOL], count)
            _compare(results[OURS], folder, count)

        times = race(contestants, bench.repeats, check)
    what = f"taking in {count:,} JPEG files of {SIDE} x {SIDE}"
    parts, alone = _measure_parts(files[:PARTED], store)
    least = sum(parts[name] for name in NEEDED) * count / cores()
    yield speed_row(what, POOL, times[OURS], times[POOL], WANTED, limit=least)
    yield note_row("the same, part by part", _describe(parts, alone))


def _measure_parts(files: Sequence[Path], store: Path) -> tuple[dict[str, float], float]:
    """Return the CPU seconds that each part takes for an image, and that Pillow takes to decode."""
    turns, alone = [], []
    for _ in range(PARTED_TURNS):
        turns.append(ours.ingest_parts(files, store))
        shutil.rmtree(store)
        started = time.thread_time()
        decode_files(files)
        alone.append((time.thread_time() - started) / len(files))
    return {name: min(turn[name] for turn in turns) for name in turns[0]}, min(alone)


def _describe(parts: Mapping[str, float], alone: float) -> str:
    """Say what the parts take one upon the other, and what the ratio could be at most."""
    total, sums = 0.0, []
    for name, seconds in parts.items():
        total += seconds
        sums.append(f"+ {name} {total * 1000:.3f}")
    floor = sum(parts[name] for name in NEEDED)
    return (
        f"CPU time an image, ms: {', '.join(sums).removeprefix('+ ')}; {', '.join(NEEDED[:-1])} "
        f"and {NEEDED[-1]} are the floor, {floor * 1000:.3f}, where Pillow reads and decodes in "
        f"{alone * 1000:.3f}: at most {alone / floor:.2f} x"
    )


def decode_files(files: Sequence[Path]) -> int:
    """Decode files as one would with Pillow; return how many."""
    for file in files:
        with Image.open(file) as image:
            np.asarray(image)
    return len(files)


def _compare(store: Path, folder: Path, count: int) -> None:
    """Raise `MismatchError` where images in the store differ from what Pillow reads."""
    images = pipeline.open_images(store, SPLIT)
    table = pq.read_table(store / "samples.parquet", columns=["source"])
    sources = table["source"].to_pylist()
    require_equal("images in the store", images.sizes["sample"], count)
    for number in range(0, count, max(1, count // COMPARED)):
        with Image.open(folder / sources[number]) as image:
            expected = np.asarray(image)
        if not np.array_equal(images["image"][number].values, expected):
            raise MismatchError(f"{sources[number]} has other pixels in the store")


# The files ---------------------------------------------------------------------------------------


def make_files(parent: Path, count: int, threads: int) -> Path:
    """Return a folder of `count` files, made where it is missing.

    Raises
    ------
    SkippedError
        Where the files and a store of them would not fit the disk.
    """
    folder = parent / f"jpegs-{count}"
    if folder.exists():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    needed = count * (FILE_BYTES + SIDE * SIDE * CHANNELS)
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise SkippedError(
            f"{count:,} files and their store need {needed / GIGABYTE:.1f} GB in {parent}, where "
            f"{free / GIGABYTE:.1f} GB are free"
        )
    aside = parent / f"{folder.name}.part"
    shutil.rmtree(aside, ignore_errors=True)
    for name in range(CLASSES):
        (aside / SPLIT / f"class-{name}").mkdir(parents=True)

    def write(number: int) -> None:
        file = aside / SPLIT / f"class-{number % CLASSES}" / f"{number:06}.jpg"
        Image.fromarray(make_picture(number)).save(file, quality=QUALITY)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(count)))
    return aside.rename(folder)


def make_picture(number: int) -> npt.NDArray[np.uint8]:
    """Return picture `number`, [y, x, channel]: smooth fields and a little noise."""
    fields, noise = _parts()
    drawn = [
        int(value) for value in scramble(np.arange(2, dtype=np.uint64) + np.uint64(2 * number))
    ]
    total = np.full((SIDE, SIDE, CHANNELS), 128, np.float32)
    for wave, of_wave in enumerate(fields):
        total += of_wave[(drawn[0] >> 8 * wave) % FIELDS]
    down, right = drawn[1] % SIDE, (drawn[1] >> 32) % SIDE
    total += noise[down : down + SIDE, right : right + SIDE]
    return total.clip(0, 255).astype(np.uint8)


@cache
def _parts() -> tuple[Floats, Floats]:
    """Return fields [wave, number, y, x, channel] and noise [y, x, channel] to be cut from."""
    random = np.random.default_rng(0)
    fields = np.empty((len(POINTS), FIELDS, SIDE, SIDE, CHANNELS), np.float32)
    for wave, points in enumerate(POINTS):
        for place in np.ndindex(FIELDS, CHANNELS):
            values = random.normal(0, STRENGTH / 2 ** (wave / 2), (points, points))
            rough = Image.fromarray(values.astype(np.float32))
            smooth = rough.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            fields[wave, place[0], :, :, place[1]] = np.asarray(smooth)
    noise = random.normal(0, NOISE, (2 * SIDE, 2 * SIDE, CHANNELS))
    return fields, noise.astype(np.float32)
