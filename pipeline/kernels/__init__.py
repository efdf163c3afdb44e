"""The kernels: NumPy arrays in, exact integers out, the same bits on every device.

Four functions behind one protocol, written twice: `cpu` (numba) and `torch` (any torch
device). They know nothing of dask, xarray or paths, and divide nothing: see `exact`.
"""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy.typing as npt

from pipeline.errors import ConfigError
from pipeline.exact import Arithmetic, Int64Array

Pixels = npt.NDArray[Any]
"""[sample, pixel]; uint8 or uint16, C-contiguous."""


class ClassSums(Protocol):
    """Sum the images of each class.

    `positions` is [sample] int64, the class position of each image, negative to leave it out.
    Returns the pixel sums, [class, pixel] int64, and the image counts, [class] int64.
    """

    def __call__(
        self, images: Pixels, positions: Int64Array, classes: int
    ) -> tuple[Int64Array, Int64Array]: ...


class L1Numerators(Protocol):
    """Return `sum |n*x - P|` of every image x and prototype P/n, [sample, class] int64."""

    def __call__(
        self,
        images: Pixels,
        numerators: Int64Array,
        denominators: Int64Array,
        arithmetic: Arithmetic,
    ) -> Int64Array: ...


class DotProducts(Protocol):
    """Return `sum x*P` of every image x and prototype P/n, [sample, class] int64."""

    def __call__(
        self,
        images: Pixels,
        numerators: Int64Array,
        denominators: Int64Array,
        arithmetic: Arithmetic,
    ) -> Int64Array: ...


class SquaredNorms(Protocol):
    """Return `sum x*x` of every image, [sample] int64."""

    def __call__(self, images: Pixels) -> Int64Array: ...


@dataclass(frozen=True)
class Kernels:
    """The kernels of one device."""

    device: str
    class_sums: ClassSums
    l1_numerators: L1Numerators
    dot_products: DotProducts
    squared_norms: SquaredNorms


def has_cuda_driver() -> bool:
    """Tell whether the CUDA driver can be loaded, without importing torch."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@lru_cache(maxsize=8)
def load(device: str = "auto") -> Kernels:
    """Return the kernels for `auto`, `cpu`, `cuda`, `cuda:N` or `torch:DEVICE`.

    `auto` takes a CUDA device where this process sees one, else the CPU. torch is imported
    only where it is needed.

    Raises
    ------
    ConfigError
        Where the device is not of that form, or this machine has none such.
    """
    if device == "cpu" or (device == "auto" and not has_cuda_driver()):
        cpu = importlib.import_module("pipeline.kernels.cpu")
        return Kernels(
            "cpu", cpu.class_sums, cpu.l1_numerators, cpu.dot_products, cpu.squared_norms
        )
    on_torch = importlib.import_module("pipeline.kernels.torch")
    if device == "auto":
        return load("cuda" if on_torch.is_available("cuda") else "cpu")
    name = device.removeprefix("torch:")
    if name == device and not name.startswith("cuda"):
        raise ConfigError(f"device '{device}': expected auto, cpu, cuda, cuda:N or torch:DEVICE")
    if not on_torch.is_available(name):
        raise ConfigError(
            f"device '{device}': torch finds no such device on this machine; "
            "use device: auto to take what there is"
        )
    return Kernels(
        f"torch:{name}",
        partial(on_torch.class_sums, device=name),
        partial(on_torch.l1_numerators, device=name),
        partial(on_torch.dot_products, device=name),
        partial(on_torch.squared_norms, device=name),
    )
