"""What the kernels of a GPU take, against its own limits and what torch has, on generated images.

Times on a GPU are those between two events, medians of several; elsewhere, where the same rows run
small to be tested, those of a clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.core.exact import NOWHERE, choose_arithmetic
from pipeline.kernels import backends, transfers, triton, triton_nearest, triton_sums, triton_tiles

KINDS = 10  # of generated images
OF_CLASS = 6000  # images that each prototype is the mean of
# operations a second on 8-bit integers, dense, as their makers say
NOMINAL = {"H100": 1.979e15, "H200": 1.979e15, "A100": 0.624e15, "L40S": 0.733e15, "B200": 4.5e15}


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes
    ----------
    side, classes, k
        Pixels of a side of an image, prototypes, and how many neighbours are looked for.
    swept, sent, queries, references
        Images in a sweep on the device, of a sweep from the host, and of a search.
    repeats, tried
        How often each is measured, and how many block sizes are tried.
    """

    side: int
    classes: int
    k: int
    swept: int
    sent: int
    queries: int
    references: int
    repeats: int
    tried: int

    @property
    def pixels(self) -> int:
        return self.side**2


LARGE = Scale(28, 10, 10, 2_000_000, 1_000_000, 10_000, 60_000, 9, 9)
SMALL = Scale(5, 2, 1, 4, 4, 2, 7, 1, 1)


@dataclass(frozen=True)
class Row:
    """What was measured, against what, and what is asked for at least."""

    name: str
    against: str
    ratio: float
    asked: float | None
    note: str


@dataclass(frozen=True)
class Bench:
    """A device, and how much is measured there."""

    device: str
    scale: Scale

    @property
    def name(self) -> str:
        return self.device.split(":", 1)[1] if self.device.startswith("triton:") else self.device

    @property
    def on_gpu(self) -> bool:
        return self.name.startswith("cuda")

    def seconds(self, function: Callable[[], Any], repeats: int | None = None) -> float:
        """Return the median of what a function takes, after it was called once."""
        function()
        times = []
        for _ in range(repeats or self.scale.repeats):
            if not self.on_gpu:
                begun = time.perf_counter()
                function()
                times.append(time.perf_counter() - begun)
                continue
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            function()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1000)
        return statistics.median(times)

    def random(self, count: int) -> torch.Tensor:
        """Images at random, on the device."""
        size = count, self.scale.pixels
        return torch.randint(0, 256, size, dtype=torch.uint8, device=self.name)

    @property
    def shape(self) -> tuple[int, int]:
        """Of an image."""
        return self.scale.side, self.scale.side

    def prototypes(self) -> Any:
        """Ten means, ready on the device."""
        rng, pixels = np.random.default_rng(0), self.scale.pixels
        return backends.load(self.device).prepare(
            rng.integers(0, 255 * OF_CLASS + 1, (self.scale.classes, pixels)),
            np.full(self.scale.classes, OF_CLASS),
            choose_arithmetic(OF_CLASS, pixels, "uint8"),
        )

    def labels(self, count: int) -> torch.Tensor:
        """Classes at random, on the device."""
        return torch.randint(0, self.scale.classes, (count,), device=self.name)

    def sums(self) -> torch.Tensor:
        """What `add_classes` adds to."""
        size = 2, self.scale.classes + 1, self.scale.pixels
        return torch.zeros(size, dtype=torch.int64, device=self.name)


def generated(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Images somewhat like photographs of things of ten kinds, [sample, pixel] uint8."""
    rng, grid = np.random.default_rng(seed), np.arange(side)
    centres, widths = rng.uniform(6, 22, (KINDS, 6, 2)), rng.uniform(2, 6, (KINDS, 6))
    centres, widths = centres * side / 28, (widths * side / 28)[..., None, None]
    across = (grid[:, None] - centres[..., 0, None, None]) ** 2
    down = (grid - centres[..., 1, None, None]) ** 2
    blobs = np.exp(-(across + down) / widths**2)  # [class, blob, y, x]
    images = np.empty((count, side * side), np.uint8)
    for start in range(0, count, 10_000):
        part = images[start : start + 10_000]
        kind = rng.integers(0, KINDS, len(part))
        weights = rng.uniform(0, 1, (len(part), 6))
        light = np.einsum("nb,nbp->np", weights, blobs.reshape(KINDS, 6, -1)[kind])
        noise = rng.normal(0, 6, light.shape)
        part[:] = np.clip(150 * light + noise, 0, 255).astype(np.uint8)
    return images


def limits(bench: Bench) -> dict[str, float]:
    """Measure bytes a second that a copy on the device reads and writes, and 8-bit operations."""
    size = 2**32 if bench.on_gpu else 2**12
    source = torch.empty(size, dtype=torch.uint8, device=bench.name).random_()
    target = torch.empty_like(source)
    found = {"bytes": 2 * size / bench.seconds(lambda: target.copy_(source))}
    side = 8192 if bench.on_gpu else 64
    a, b = (
        torch.randint(-128, 128, (side, side), dtype=torch.int8, device=bench.name)
        for _ in range(2)
    )
    found["operations"] = 2 * side**3 / bench.seconds(lambda: torch._int_mm(a, b.T))
    return found


def sweeps(bench: Bench, limit: float) -> Iterator[Row]:
    """Sums by class, and distances to prototypes, of images that lie on the device."""
    batch = bench.random(bench.scale.swept)
    labels, sums = bench.labels(len(batch)), bench.sums()
    window = triton_sums.window_of(bench.scale.classes)
    ordered = triton_sums.order_by_class(labels, bench.scale.classes, window)
    size = batch.numel()

    def both() -> None:
        triton_sums.add_classes(
            batch, triton_sums.order_by_class(labels, bench.scale.classes, window), sums
        )

    alone = size / bench.seconds(lambda: triton_sums.add_classes(batch, ordered, sums))
    whole = size / bench.seconds(both)
    bandwidth, note = "device memory bandwidth", f"{len(batch):,} images"
    yield Row("class sums", bandwidth, alone / limit, 0.7, f"{note}, {_rate(alone)}")
    yield Row("with the order by class", bandwidth, whole / limit, None, _rate(whole))
    reference = bench.prototypes()
    took = size / bench.seconds(lambda: triton.measure_batch(batch, reference))
    yield Row(
        f"l1 + l2 to {bench.scale.classes} prototypes", bandwidth, took / limit, 0.3, _rate(took)
    )
    shape = bench.scale.classes, bench.scale.pixels, 256
    counts = torch.zeros(shape, dtype=torch.int32, device=bench.name)
    took = size / bench.seconds(lambda: triton_sums.count_values(batch, labels, None, counts))
    yield Row("histograms", bandwidth, took / limit, None, _rate(took))


def from_host(bench: Bench) -> Iterator[Row]:
    """The same distances from memory of the host, copies there and back included."""
    use = backends.load(bench.device)
    pinned = use.empty((bench.scale.sent, bench.scale.pixels), np.uint8)
    pinned[:] = np.random.default_rng(1).integers(0, 256, (1, bench.scale.pixels), np.uint8)
    reference = bench.prototypes()
    there = torch.empty(pinned.shape, dtype=torch.uint8, device=bench.name)
    copied = bench.seconds(lambda: there.copy_(torch.from_numpy(pinned), non_blocking=True))
    for name, images, asked in (("pinned", pinned, 0.8), ("ordinary", pinned.copy(), None)):
        took = bench.seconds(lambda images=images: use.measure(images, reference))
        note = f"{_rate(pinned.nbytes / took)} against {_rate(pinned.nbytes / copied)}"
        what = f"the same from {name} memory of the host"
        yield Row(what, "a pinned copy of the same bytes", copied / took, asked, note)


def neighbours(bench: Bench, limit: float, nominal: float | None) -> Iterator[Row]:
    """The nearest of some queries among many references, against torch."""
    scale, use = bench.scale, backends.load(bench.device)
    images = generated(scale.references, scale.side)
    queries = generated(scale.queries, scale.side, 1)
    skip = np.full(len(queries), -1)
    x, y = (torch.from_numpy(part).to(bench.name).float() for part in (queries, images))
    what = f"{len(queries):,} among {len(images):,} x {scale.pixels}, k = {scale.k}"
    for metric, p, asked in (("l1", 1.0, 10.0), ("l2", 2.0, 2.0)):
        references = use.prepare_search(images, bench.shape, metric)

        def ours(references: Any = references) -> None:
            lists = np.full((2, len(queries), scale.k), NOWHERE)
            use.nearest(queries, references, skip, *lists)

        def theirs(p: float = p) -> None:
            torch.topk(torch.cdist(x, y, p), scale.k, largest=False)

        mine, torchs = bench.seconds(ours), bench.seconds(theirs, 3 if bench.on_gpu else 1)
        note = f"{1000 * mine:.3g} ms against {1000 * torchs:.3g} ms"
        against = f"torch.cdist(p={p:.0f}) + topk"
        yield Row(f"{what}, {metric}", against, torchs / mine, asked, note)
        tile = bench.seconds(_tiles(bench, references, queries))
        if metric == "l1":
            rate = queries.size * len(images) / tile
            yield Row(
                "tiles alone, l1", "-", 0.0, None, f"{rate / 1e12:.3g} T differences a second"
            )
            continue
        operations = 2 * queries.size * len(images) / tile
        rate = f"{operations / 1e12:.4g} T operations a second"
        yield Row("tiles alone, l2", "torch._int_mm", operations / limit, None, rate)
        if nominal is not None:
            yield Row("tiles alone, l2", "int8 peak, nominal", operations / nominal, 0.4, rate)


def _tiles(bench: Bench, references: Any, queries: np.ndarray) -> Callable[[], Any]:
    laid_out = references.lay_out(torch.from_numpy(queries).to(bench.name))
    none = torch.full((len(queries),), -1, device=bench.name)
    return lambda: triton_nearest._least(laid_out, references, none)


def against_the_cpu(bench: Bench, threads: int) -> Iterator[Row]:
    """All images among themselves, from and to memory of the host, against the CPU's kernels."""
    images = generated(bench.scale.references, bench.scale.side)
    own, seconds = np.arange(len(images)), {}
    found = {}
    for device in (bench.device, "cpu"):
        use = backends.load(device)

        def search(use: Any = use, device: str = device) -> None:
            lists = np.full((2, len(images), bench.scale.k), NOWHERE)
            prepared = use.prepare_search(images, bench.shape, "l1", threads=threads)
            use.nearest(images, prepared, own, *lists, threads)
            found[device] = lists

        seconds[device] = bench.seconds(search, 1)
    assert np.array_equal(found[bench.device], found["cpu"]), "neighbours on the device"
    mine, theirs = seconds[bench.device], seconds["cpu"]
    what = f"{len(images):,} x {len(images):,} neighbours, l1"
    note = f"{mine:.3g} s against {theirs:.3g} s in {threads} threads"
    yield Row(what, "our CPU path on this machine", theirs / mine, 10.0, note)


def tuned(bench: Bench) -> Iterator[Row]:
    """Other block sizes than those that are chosen: how much longer each takes."""
    batch = bench.random(bench.scale.swept)
    labels = bench.labels(len(batch))
    ordered = triton_sums.order_by_class(
        labels, bench.scale.classes, triton_sums.window_of(bench.scale.classes)
    )
    sums = bench.sums()
    for rows, columns, stages, warps in (
        (16, 256, 3, 4), (16, 256, 1, 4), (8, 1024, 1, 8), (8, 1024, 3, 8), (32, 128, 4, 4),
    )[: bench.scale.tried]:  # fmt: skip
        chosen = {"ROWS": rows, "COLUMNS": columns, "STAGES": stages, "num_warps": warps}
        yield _tried(bench, "class sums", chosen, batch.numel(), triton_sums.add_classes,
                     (batch, ordered, sums))  # fmt: skip
    reference = bench.prototypes()
    several = [(32, 32, 4), (64, 16, 4), (32, 16, 4), (16, 32, 4), (64, 32, 8)]
    for rows, columns, warps in several[: bench.scale.tried]:
        chosen = {"ROWS": rows, "COLUMNS": columns, "num_warps": warps}
        yield _tried(bench, "prototypes", chosen, batch.numel(), triton.measure_batch,
                     (batch, reference))  # fmt: skip
    del batch
    yield from _tuned_tiles(bench)


def _tuned_tiles(bench: Bench) -> Iterator[Row]:
    images = generated(bench.scale.references, bench.scale.side)
    use = backends.load(bench.device)
    queries = torch.from_numpy(images[: bench.scale.queries]).to(bench.name)
    none = torch.full((len(queries),), -1, device=bench.name)
    size = queries.numel() * len(images)
    settings = {
        "l1": [(32, 256, 4, 1), (16, 512, 4, 1), (16, 256, 4, 1), (32, 256, 2, 1)],
        "l2": [(128, 256, 8, 3), (128, 128, 8, 4), (128, 128, 4, 4), (64, 256, 4, 4)],
    }
    for metric, several in settings.items():
        references = use.prepare_search(images, bench.shape, metric)
        laid_out = references.lay_out(queries)
        shape = len(queries), references.groups
        minima = torch.empty(shape, dtype=references.least, device=bench.name)
        for rows, columns, warps, stages in several[: bench.scale.tried]:
            chosen = {"QUERIES": rows, "REFERENCES": columns, "num_warps": warps}
            more: dict[str, Any] = {"references": len(images)}
            if metric == "l1":
                call: Any = triton_tiles.least_differences
                given = laid_out, references.images, none, minima, references.far
            else:
                call, chosen["num_stages"] = triton_tiles.least_products, stages
                norms = triton_nearest._norms(laid_out), references.norms
                given = laid_out, references.images, norms, none, minima, references.far
            yield _tried(bench, f"tiles {metric}", chosen | more, size, call, given)


def _tried(
    bench: Bench, what: str, chosen: dict[str, Any], size: int, function: Any, given: Any
) -> Row:
    name = ", ".join(f"{key} {value}" for key, value in chosen.items() if key != "references")
    try:
        took = bench.seconds(lambda: function(*given, **chosen), 3)
    except Exception as error:  # block sizes that a device has no room for
        return Row(what, name, 0.0, None, f"{type(error).__name__}: {str(error)[:80]}")
    return Row(what, name, 0.0, None, f"{1000 * took:.4g} ms, {size / took / 1e12:.3g} T a second")


def _rate(bytes_a_second: float) -> str:
    return f"{bytes_a_second / 1e9:,.4g} GB/s"


def device_limits() -> dict[str, str]:
    """Return what the device and its software are."""
    return {
        "torch": torch.__version__,
        "triton": triton.VERSION,
        "numpy": np.__version__,
        "free": str(transfers.free_bytes(torch.device("cuda")))
        if torch.cuda.is_available()
        else "",
    }
