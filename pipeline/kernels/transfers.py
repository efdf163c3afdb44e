"""Images to a device and results back, in batches: copied ahead, halved where memory runs out.

Images go as they are, 8 or 16 bits a pixel. On CUDA a batch is copied into pinned memory by a few
threads and from there on a stream of its own, while the batch before it is worked on; two pinned
buffers take turns. Images that lie in pinned memory already, see `empty`, are copied from where
they are. Results come back into pinned memory on the way. Elsewhere a copy is just a copy.

Where the device runs out of memory, batches are halved, and what is done is not done again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.errors import DeviceMemoryError, format_bytes
from pipeline.core.exact import Int64Array
from pipeline.core.threads import in_ranges

# The share of a CUDA device's free memory that the copies of one batch may take.
_SHARE = 8
_MOST_BYTES = 2**30
# Bytes that a batch may take elsewhere.
_BATCH_BYTES = {"cpu": 8 * 2**20}
_BATCH_BYTES_ELSEWHERE = 64 * 2**20
# Bytes of pixels of a batch at most, so that there is something to copy ahead, and at least.
_SENT, _LEAST_SENT, _BATCHES = 128 * 2**20, 8 * 2**20, 8

# Threads that copy, more do not add up; and bytes that one copies at least.
_COPYING, _COPIED_BYTES = 4, 2**20

Sums = tuple[Int64Array, Int64Array, Int64Array]
Work = Callable[[slice, torch.Tensor], None]
"""Called with the slice of a batch and the images of it on the device, [sample, pixel].

It must allocate what it needs before it adds to what other batches add to: where the device runs
out of memory it is called again with a part of the same images.
"""

_log = logging.getLogger("pipeline")


def free_bytes(device: torch.device) -> int:
    """Return what a CUDA device has free for this process, with what torch keeps of it."""
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + max(0, kept))


def least_memory() -> int:
    """Return what is free on the CUDA device that has the least."""
    numbers = range(torch.cuda.device_count())
    return min(free_bytes(torch.device("cuda", number)) for number in numbers)


def empty(shape: tuple[int, ...], dtype: Any, device: str) -> npt.NDArray[Any]:
    """Return an array in memory that the device copies from without a detour."""
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    pinned = torch.device(device).type == "cuda"
    return np.asarray(torch.empty(shape, dtype=kind, pin_memory=pinned).numpy())


def as_tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """Return an array as a tensor on the CPU; of a read-only one, a copy."""
    return torch.from_numpy(np.require(array, None, ["C", "W"]))


def results(shape: tuple[int, ...], kind: torch.dtype, device: str) -> torch.Tensor:
    """Return room for results on the host, to which a device copies while it goes on."""
    return torch.empty(shape, dtype=kind, pin_memory=torch.device(device).type == "cuda")


def add_up(parts: Sums, into: Sums | None) -> Sums:
    """Return sums over some images; or add them to others, and return these."""
    if into is None:
        return parts
    for target, part in zip(into, parts, strict=True):
        target += part
    return into


def _rows_at_once(count: int, pixel_bytes: int, row_bytes: int, device: torch.device) -> int:
    """Return how many images a batch has."""
    if device.type != "cuda":
        room = _BATCH_BYTES.get(device.type, _BATCH_BYTES_ELSEWHERE)
        return max(1, room // max(row_bytes, 1))
    room = min(free_bytes(device) // _SHARE, _MOST_BYTES)
    sent = min(max(count * pixel_bytes // _BATCHES, _LEAST_SENT), _SENT)
    return max(1, min(room // max(row_bytes, 1), sent // max(pixel_bytes, 1)))


def for_each_batch(images: npt.NDArray[Any], device: str, row_bytes: int, work: Work) -> None:
    """Do some work with images on a device, batch after batch; it is done when this returns.

    Parameters
    ----------
    images
        [sample, pixel].
    device
        As torch names it.
    row_bytes
        What the work takes on the device for each image, the image itself included.
    work
        See `Work`.

    Raises
    ------
    DeviceMemoryError
        Where the device has no memory for one image.
    """
    target = torch.device(device)
    pixel_bytes = images.shape[1] * images.itemsize
    step, done = _rows_at_once(len(images), pixel_bytes, row_bytes, target), 0
    while done < len(images):
        step = min(step, len(images) - done)
        slices = [
            slice(start, min(start + step, len(images))) for start in range(done, len(images), step)
        ]
        done = _work_through(images, slices, target, work)
        if done < len(images):
            step = _halved(step, row_bytes, target)
    if target.type == "cuda":
        torch.cuda.synchronize(target)


def _work_through(
    images: npt.NDArray[Any], slices: list[slice], device: torch.device, work: Work
) -> int:
    """Work until the device runs out of memory; return how many images are done."""
    done = slices[0].start
    # kernels of Triton start on the device that is the current one
    current: Any = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    try:
        with current:
            for part, batch in _on_device(images, slices, device):
                work(part, batch)
                done = part.stop
    except torch.OutOfMemoryError:
        pass  # what it took is given back when this returns
    return int(done)


def _halved(step: int, row_bytes: int, device: torch.device) -> int:
    """Return half as many images a batch, and say so."""
    have = ""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        have = f", {format_bytes(free_bytes(device))} of it free"
    if step <= 1:
        raise DeviceMemoryError(
            f"device '{device}': out of memory with one image at a time, which takes "
            f"{format_bytes(row_bytes)}{have}; end what else uses the device, run fewer tasks at "
            "once (--set cluster.workers=1), or use device: cpu"
        )
    _log.warning(
        "device '%s': out of memory with %s images at a time; going on with %s",
        device, f"{step:,}", f"{step // 2:,}",
    )  # fmt: skip
    return step // 2


@contextmanager
def memory_of(what: str, size: int, device: str) -> Iterator[None]:
    """Turn an out-of-memory of the device into one line that says what did not fit."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise DeviceMemoryError(
            f"device '{device}': out of memory for {what}, which take {format_bytes(size)}; end "
            "what else uses the device, run fewer tasks at once (--set cluster.workers=1), or use "
            "device: cpu"
        ) from None


def _on_device(
    images: npt.NDArray[Any], slices: list[slice], device: torch.device
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the images in batches on the device, each with its slice."""
    if device.type == "cuda":
        yield from _copied_ahead(images, slices, device)
        return
    for part in slices:
        yield part, as_tensor(images[part]).to(device)


def copy_in_threads(target: npt.NDArray[Any], source: npt.NDArray[Any]) -> None:
    """Copy an array into another of its shape, parts of a large one at once."""

    def copy(start: int, stop: int) -> None:
        np.copyto(target[start:stop], source[start:stop])

    threads = max(1, min(_COPYING, source.nbytes // _COPIED_BYTES))
    in_ranges(threads, len(source), copy, "pixsim-copy")


def _is_pinned(images: npt.NDArray[Any]) -> bool:
    plain = images.flags.c_contiguous and images.flags.writeable
    return plain and bool(torch.from_numpy(images).is_pinned())


def _copied_ahead(
    images: npt.NDArray[Any], slices: list[slice], device: torch.device
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Copy the next batch to a CUDA device while the one before it is worked on."""
    if not slices:
        return
    copies: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    kind = torch.from_numpy(np.empty(0, images.dtype)).dtype
    shape = (max(part.stop - part.start for part in slices), images.shape[1])
    there = _is_pinned(images)
    pinned = [] if there else [results(shape, kind, "cuda") for _ in slices[:2]]
    copied: Any = [torch.cuda.Event() for _ in slices[:2]]  # type: ignore[no-untyped-call]

    def send(number: int) -> torch.Tensor:
        part, turn = slices[number], number % 2
        copied[turn].synchronize()  # the buffer's last copy has left it
        if there:
            source = torch.from_numpy(images[part])
        else:
            source = pinned[turn][: part.stop - part.start]
            copy_in_threads(source.numpy(), images[part])
        with torch.cuda.stream(copies):
            batch = source.to(device, non_blocking=True)
            copied[turn].record(copies)
        return batch

    try:
        following = send(0)
        for number, part in enumerate(slices):
            batch, turn = following, number % 2
            current = torch.cuda.current_stream(device)
            current.wait_event(copied[turn])
            batch.record_stream(current)  # its memory is not used again before the work is done
            if number + 1 < len(slices):
                following = send(number + 1)
            yield part, batch
    finally:
        copies.synchronize()  # what is copied from is not given back before
