"""The kernels: NumPy arrays in, exact integers out, the same bits on every device.

A handful of functions behind one protocol, written four times: in numba for a CPU, in NumPy where
there is so little to do that numba is not worth loading, in Triton for a CUDA device, and in plain
torch for any torch device, to which a CUDA device falls back where Triton cannot be used. They know
nothing of dask, xarray or paths, and divide nothing: see `exact`.
"""

from __future__ import annotations

import ctypes
import importlib
from functools import lru_cache, partial
from typing import Any

import numpy as np

from pipeline.core.errors import ConfigError, one_line
from pipeline.kernels.protocols import Kernels


def has_cuda_driver() -> bool:
    """Tell whether the CUDA driver can be loaded, without importing torch."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@lru_cache(maxsize=8)
def load(device: str = "auto", threads: int = 1) -> Kernels:
    """Return the kernels for `auto`, `cpu`, `cuda`, `cuda:N`, `torch:DEVICE` or `triton:DEVICE`.

    `numpy` is what `for_work` returns where there is little to do on a CPU. `auto` takes a CUDA
    device where this process sees one, else the CPU. Of a CUDA device that is named without a
    library, Triton's are taken where they can be compiled and count a small block right, else those
    of plain torch; `description` says which, and why. torch and Triton are imported only where they
    are needed.

    Parameters
    ----------
    device
        As above.
    threads
        How many cores a sum over classes uses, on a CPU. What is measured image by image is
        split by the caller.

    Raises
    ------
    ConfigError
        Where the device is not of that form, this machine has none such, or `triton:` names one on
        which Triton cannot be used.
    """
    if device == NUMPY:
        return _load_numpy()
    if device == "cpu" or (device == "auto" and not has_cuda_driver()):
        return _load_cpu(threads)
    on_torch = importlib.import_module("pipeline.kernels.torch")
    if device == "auto":
        return load("cuda" if on_torch.is_available("cuda") else "cpu", threads)
    library, name = device.split(":", 1) if device.startswith(_LIBRARIES) else ("", device)
    if not library and not name.startswith("cuda"):
        raise ConfigError(
            f"device '{device}': expected auto, cpu, cuda, cuda:N, torch:DEVICE or triton:DEVICE"
        )
    if not on_torch.is_available(name):
        raise ConfigError(
            f"device '{device}': torch finds no such device on this machine; "
            "use device: auto to take what there is"
        )
    on_torch.use_threads(threads)
    reason = "asked for" if library == "torch" else why_not_triton(name)
    if reason is None:
        return _load_triton(name)
    if library == "triton":
        raise ConfigError(f"device '{device}': {reason}; use device: torch:{name}")
    return _load_torch(name, reason)


_LIBRARIES = ("torch:", "triton:")
NUMPY = "numpy"
LITTLE = 2**28
"""Pixels times prototypes and metrics that NumPy measures in 0.2 s; numba takes 0.9 s to load."""


def for_work(device: str, work: int) -> str:
    """Return `numpy` in place of a CPU where there is little to do, else the device.

    Parameters
    ----------
    device
        As for `load`.
    work
        How often a pixel is added, or compared with that of a prototype, in all.
    """
    on_cpu = device == "cpu" or (device == "auto" and not has_cuda_driver())
    return NUMPY if on_cpu and work <= LITTLE else device


def least_memory() -> int:
    """Return the bytes that are free on that CUDA device of this machine which has the fewest."""
    return int(importlib.import_module("pipeline.kernels.transfers").least_memory())


@lru_cache(maxsize=8)
def why_not_triton(device: str) -> str | None:
    """Return why Triton cannot be used on a torch device, in a few words; None where it can."""
    try:
        on_triton = importlib.import_module("pipeline.kernels.triton")
    except ImportError as error:
        return f"Triton cannot be imported ({one_line(error)})"
    if not device.startswith("cuda") and not on_triton.INTERPRETED:
        return "Triton's kernels run on a CUDA device, or with TRITON_INTERPRET=1 on a CPU"
    try:
        on_triton.require_usable(device)
    except Exception as error:  # whatever a compiler or a driver says
        return f"Triton {on_triton.VERSION} is of no use here ({one_line(error)[:_LONGEST]})"
    return None


_LONGEST = 200  # characters of what a compiler says


def _load_torch(name: str, reason: str) -> Kernels:
    on_torch = importlib.import_module("pipeline.kernels.torch")
    of_cuda = f": {reason}" if name.startswith("cuda") else ""
    library = f"plain torch {on_torch.VERSION}{of_cuda}"
    return _on_device("torch", name, library, on_torch, on_torch, on_torch)


def _load_triton(name: str) -> Kernels:
    sweeps = importlib.import_module("pipeline.kernels.triton")
    sums = importlib.import_module("pipeline.kernels.triton_sums")
    search = importlib.import_module("pipeline.kernels.triton_nearest")
    library = f"Triton {sweeps.VERSION}{', interpreted' if sweeps.INTERPRETED else ''}"
    return _on_device("triton", name, library, sums, sweeps, search)


def _on_device(kind: str, name: str, library: str, sums: Any, sweeps: Any, search: Any) -> Kernels:
    """Return the kernels of a torch device: of three modules what adds up, measures, searches."""
    on_torch = importlib.import_module("pipeline.kernels.torch")
    transfers = importlib.import_module("pipeline.kernels.transfers")
    return Kernels(
        f"{kind}:{name}",
        f"{on_torch.device_name(name)}, {library}",
        kind == "triton" or name.startswith("cuda"),
        on_torch.device_memory(name),
        partial(sums.class_sums, device=name),
        partial(sums.histograms, device=name),
        load("cpu").select_ranks,  # on the host: there is little to do
        partial(sweeps.prepare, device=name),
        sweeps.l1_numerators,
        sweeps.dot_products,
        partial(sweeps.squared_norms, device=name),
        sweeps.measure,
        partial(search.prepare_search, device=name),
        search.nearest,
        search.within,
        partial(transfers.empty, device=name),
        _count_only,
        _count_only,
    )


def _count_only(*_: Any, **__: Any) -> bool:
    """Leave the division to the host."""
    return False


def _load_numpy() -> Kernels:
    plain = importlib.import_module("pipeline.kernels.numpy")
    return Kernels(
        NUMPY,
        "cpu, NumPy",
        False,
        None,
        plain.class_sums,
        plain.histograms,
        plain.select_ranks,
        plain.prepare,
        plain.l1_numerators,
        plain.dot_products,
        plain.squared_norms,
        plain.measure,
        # a search is never little
        lambda *given, **known: load("cpu").prepare_search(*given, **known),
        lambda *given, **known: load("cpu").nearest(*given, **known),
        lambda *given, **known: load("cpu").within(*given, **known),
        np.empty,
        _count_only,
        _count_only,
    )


def _load_cpu(threads: int) -> Kernels:
    sums = importlib.import_module("pipeline.kernels.cpu_sums")
    histograms = importlib.import_module("pipeline.kernels.cpu_histograms")
    cpu = importlib.import_module("pipeline.kernels.cpu_distances")
    predictions = importlib.import_module("pipeline.kernels.cpu_predictions")
    data = importlib.import_module("pipeline.kernels.search_data")
    search = importlib.import_module("pipeline.kernels.cpu_nearest")
    return Kernels(
        "cpu",
        "cpu",
        False,
        None,
        partial(sums.class_sums, threads=threads),
        partial(histograms.histograms, threads=threads),
        sums.select_ranks,
        cpu.prepare,
        cpu.l1_numerators,
        cpu.dot_products,
        sums.squared_norms,
        cpu.measure,
        data.prepare_search,
        search.nearest,
        search.within,
        np.empty,
        cpu.distances,
        predictions.nearest_prototype,
    )
