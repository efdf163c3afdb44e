"""Sources whose images are changed while they are read: converted, or floats packed into 16 bits.

Floats are packed with the range and the rounding stated. As the CF conventions have it,
`value = scale_factor * stored + add_offset`: the lowest value of the range is stored as 0, the
highest as 65535, every other as the nearest of the steps between. One range holds for all splits,
so that equal values are stored equally.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pipeline.core.blocks import Block, Source, SplitInfo
from pipeline.core.errors import ConfigError, ShapeError, SourceError
from pipeline.images.conversion import Conversion

STEPS = 2**16 - 1
# Of q = rint((x - lowest) / (highest - lowest) * STEPS) four operations are rounded, of
# scale_factor two: together less than STEPS * 6 * 2**-53 < 2**-34 steps, 2**-33 of half a step.
_FLOAT_ERROR = 2.0**-32
_TASK_BYTES = 2**26
_FLOATS = ("float32", "float64")
_FINITE = "a finite number; replace such values, or leave out their samples"

Run = Callable[[Callable[[int], Any], int], Sequence[Any]]


def run_here(function: Callable[[int], Any], count: int) -> list[Any]:
    """Call a function with the numbers from 0 to `count - 1`, one after the other."""
    return [function(number) for number in range(count)]


@dataclass(frozen=True)
class _ChangedSource:
    """What a source has in common with the one whose images it changes."""

    source: Source

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def remarks(self) -> tuple[str, ...]:
        return tuple(getattr(self.source, "remarks", ()))

    def close(self) -> None:
        self.source.close()


# conversion --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvertedSource(_ChangedSource):
    """A source of images of one shape, with a conversion applied to each."""

    conversion: Conversion

    @property
    def full_scale(self) -> int:
        """That of the source, or of the depth that its images are brought to."""
        depth = self.conversion.depth
        return self.source.full_scale if depth is None else 2**depth - 1

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {**self.source.provenance, "conversion": self.conversion.describe()}

    @property
    def encoding(self) -> Mapping[str, float]:
        """What pixel values mean, where the source says so; see `Packing`."""
        return dict(getattr(self.source, "encoding", {}))

    def splits(self) -> dict[str, SplitInfo]:
        return {
            name: replace(
                info,
                shape=self.conversion.output(info.shape),
                dtype=self.conversion.output_type(info.dtype),
            )
            for name, info in self.source.splits().items()
        }

    def read(self, split: str, start: int, stop: int) -> Block:
        block = self.source.read(split, start, stop)
        count, *shape = block.images.shape
        dtype = self.conversion.output_type(str(block.images.dtype))
        images = np.zeros((count, *self.conversion.output(shape)), dtype)
        for number, image in enumerate(block.images):
            if number not in block.problems:  # its zeros stay, whatever is done
                images[number] = self.conversion.apply(image)
        sizes = block.sizes
        if sizes is None:
            sizes = np.full((count, 2), shape[1::-1], np.int32)
        return replace(block, images=images, sizes=sizes)


def converted(source: Source, conversion: Conversion) -> ConvertedSource:
    """Return a source with a conversion applied to each image; `ShapeError` where it cannot be."""
    splits = source.splits()
    for name, info in splits.items():
        try:
            conversion.output(info.shape)
            conversion.output_type(info.dtype)
        except ShapeError as error:
            raise ShapeError(f"split '{name}': {error}") from None
    if conversion.depth is not None:
        full = max(int(np.iinfo(info.dtype).max) for info in splits.values())
        if source.full_scale != full:
            raise ShapeError(
                f"depth: {conversion.depth} is for images whose full scale is {full}, it is "
                f"{source.full_scale} here; leave the depth out"
            )
    return ConvertedSource(source, conversion)


# floats ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packing:
    """How floats become whole numbers: `lowest` is stored as 0, `highest` as 65535.

    `measured` tells whether they are the extremes of the images, or were given.
    """

    lowest: float
    highest: float
    measured: bool

    def __post_init__(self) -> None:
        span = self.highest - self.lowest
        usable = self.lowest <= self.highest and math.isfinite(span)
        if not usable or 0 < span < STEPS * np.finfo(np.float64).tiny:
            raise ConfigError(
                f"values from {self.lowest} to {self.highest} cannot be packed; expected a lowest "
                "and a highest value whose difference float64 can hold; give value_range, or "
                "scale the images"
            )

    @property
    def scale_factor(self) -> float:
        return (self.highest - self.lowest) / STEPS if self.highest > self.lowest else 1.0

    @property
    def encoding(self) -> dict[str, float]:
        return {"scale_factor": self.scale_factor, "add_offset": self.lowest}

    @property
    def rounding_error(self) -> float:
        """The most by which `scale_factor * stored + add_offset` differs from the value.

        Half a step, and 2**-32 of it for what float64 rounds; 0 where all values are equal.
        """
        half = self.scale_factor / 2 * (1 + _FLOAT_ERROR)
        return half if self.highest > self.lowest else 0.0

    def describe(self) -> dict[str, Any]:
        """Return what is done, as plain JSON."""
        return {
            **self.encoding,
            "range": [self.lowest, self.highest],
            "measured": self.measured,
            "rounding_error": self.rounding_error,
        }

    def steps(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return how many whole steps values lie above the lowest, of any values."""
        span = self.highest - self.lowest or 1.0
        steps: npt.NDArray[np.float64] = np.subtract(values, self.lowest, dtype=np.float64)
        steps /= span
        steps *= STEPS
        return np.rint(steps, out=steps)

    def apply(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
        """Return what is stored for values of the range."""
        return self.steps(values).astype(np.uint16)


@dataclass(frozen=True)
class _Ranges:
    """The task that measures the lowest and highest value of a range of samples."""

    source: Source
    pieces: tuple[tuple[str, int, int], ...]  # split, count, samples per task

    @property
    def count(self) -> int:
        return sum(-(-count // step) for _, count, step in self.pieces)

    def __call__(self, number: int) -> tuple[float, float] | None:
        for split, count, step in self.pieces:
            tasks = -(-count // step)
            if number < tasks:
                start = number * step
                return self._measure(split, start, min(start + step, count))
            number -= tasks
        raise IndexError(number)

    def _measure(self, split: str, start: int, stop: int) -> tuple[float, float] | None:
        extremes_of = getattr(self.source, "extremes", None)  # of images before they are converted
        if extremes_of is not None:
            return cast("tuple[float, float] | None", extremes_of(split, start, stop))
        values = _usable(self.source.read(split, start, stop))
        if not values.size:
            return None
        extremes = float(values.min()), float(values.max())
        if not all(map(math.isfinite, extremes)):
            _refuse(split, start, values, np.isfinite(values), _FINITE)
        return extremes


def _usable(block: Block) -> npt.NDArray[Any]:
    """Return the images of a block, those with problems replaced by one without."""
    good = [index for index in range(len(block.images)) if index not in block.problems]
    if len(good) == len(block.images):
        return block.images
    if not good:
        return block.images[:0]
    images = block.images.copy()
    images[list(block.problems)] = images[good[0]]
    return images


def _refuse(
    split: str, start: int, values: npt.NDArray[Any], good: npt.NDArray[Any], expected: str
) -> None:
    """Raise `SourceError` for the first value that is not good."""
    sample, *pixel = indices = np.unravel_index(int(np.argmin(good)), values.shape)
    raise SourceError(
        f"split '{split}', sample {start + int(sample)}, pixel "
        f"({', '.join(str(int(index)) for index in pixel)}): value {float(values[indices])}, "
        f"expected {expected}"
    )


@dataclass(frozen=True)
class PackedSource(_ChangedSource):
    """A source of floats whose images are given as uint16."""

    packing: Packing

    @property
    def full_scale(self) -> int:
        return STEPS

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {**self.source.provenance, "packing": self.packing.describe()}

    @property
    def encoding(self) -> Mapping[str, float]:
        """The attributes that tell what a stored value means."""
        return self.packing.encoding

    def splits(self) -> dict[str, SplitInfo]:
        infos = self.source.splits()
        return {name: replace(info, dtype="uint16") for name, info in infos.items()}

    def read(self, split: str, start: int, stop: int) -> Block:
        """Read and pack samples; `SourceError` where a value is not finite, or out of range."""
        block = self.source.read(split, start, stop)
        values = _usable(block)
        self._check(split, start, values)
        images = np.zeros(block.images.shape, np.uint16)
        if values.size:
            images[:] = self.packing.apply(values)
            images[list(block.problems)] = 0
        return replace(block, images=images)

    def _check(self, split: str, start: int, values: npt.NDArray[Any]) -> None:
        # the extremes first: masks are only made where something is wrong; NaN is never within
        lowest, highest = self.packing.lowest, self.packing.highest
        if not values.size or (lowest <= float(values.min()) and float(values.max()) <= highest):
            return
        finite = np.isfinite(values)
        if not finite.all():
            _refuse(split, start, values, finite, _FINITE)
        within = (values.astype(np.float64) >= lowest) & (values.astype(np.float64) <= highest)
        expected = f"{lowest} to {highest}; give a value_range that holds all values, or clip them"
        _refuse(split, start, values, within, expected)


def pack_floats(
    source: Source,
    value_range: tuple[float, float] | Packing | None = None,
    run: Run = run_here,
) -> Source:
    """Return a source that gives the floats of another as uint16.

    Where that converts images, they are packed before. `value_range` are the values to be stored as
    0 and as 65535; default: the lowest and the highest of all splits, which are measured now:
    `run` maps a function, which can be pickled, over the numbers below a count.

    Raises
    ------
    SourceError
        Where a split does not hold floats, or a measured value is not finite.
    ConfigError
        Where the range cannot be used.
    """
    if isinstance(source, ConvertedSource):
        return replace(source, source=pack_floats(source.source, value_range, run))
    splits = source.splits()
    for name, info in splits.items():
        if info.dtype not in _FLOATS:
            raise SourceError(
                f"split '{name}': images of {info.dtype}, expected float32 or float64 as in the "
                "other splits; convert them to one type"
            )
    if value_range is None:
        value_range = _measured(source, splits, run)
    if not isinstance(value_range, Packing):
        value_range = Packing(float(value_range[0]), float(value_range[1]), False)
    pack = getattr(source, "packed_by", None)  # which image files do themselves
    return cast(Source, pack(value_range)) if pack else PackedSource(source, value_range)


def _measured(source: Source, splits: Mapping[str, SplitInfo], run: Run) -> Packing:
    pieces = []
    for name, info in splits.items():
        size = max(1, math.prod(info.shape) * np.dtype(info.dtype).itemsize)
        pieces.append((name, info.count, max(1, _TASK_BYTES // size)))
    task = _Ranges(source, tuple(pieces))
    extremes = [pair for pair in run(task, task.count) if pair is not None]
    lowest = min((low for low, _ in extremes), default=0.0)
    highest = max((high for _, high in extremes), default=0.0)
    return Packing(lowest + 0.0, highest + 0.0, True)  # never -0.0, which equals 0.0
