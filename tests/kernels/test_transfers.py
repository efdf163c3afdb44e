"""Batches on a device: in order and whole, halved where memory runs out, and one line for it."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from kernel_checks_for_tests import check_classes, check_distances, check_search, some_prototypes

from pipeline.core.errors import DeviceMemoryError
from pipeline.core.exact import choose_arithmetic
from pipeline.kernels import backends, transfers

TYPES = pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def batch_sizes(images, row_bytes):
    sizes = []
    transfers.for_each_batch(images, "cpu", row_bytes, lambda _, batch: sizes.append(len(batch)))
    return sizes


@TYPES
def test_batches_on_the_device_do_not_show(monkeypatch, dtype):
    rng, largest = np.random.default_rng(1), int(np.iinfo(dtype).max)
    images = rng.integers(0, largest + 1, (23, 10)).astype(dtype)
    numerators, n = some_prototypes(rng, 4, 10, largest, 6000)
    high = rng.integers(0, 4, (3, 10), np.uint8)
    for rows in (1, 2, 7, 22, 23, 24):
        monkeypatch.setitem(transfers._BATCH_BYTES, "cpu", rows * 10 * 25)
        assert batch_sizes(images, 250) == [min(rows, 23 - at) for at in range(0, 23, rows)]
        check_classes("torch:cpu", images >> 6, np.arange(23) % 4 - 1, 3, 1, high)
        check_distances("torch:cpu", images, numerators, n, choose_arithmetic(6000, 10, dtype))


@pytest.fixture
def _no_streams(monkeypatch):
    """Let what copies to a CUDA device run on the CPU, without streams."""

    class Nothing:
        def __init__(self, *_):
            self.record = self.synchronize = self.wait_event = lambda *_: None

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory: empty(shape, dtype=dtype))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    for name, value in {
        "Stream": Nothing, "Event": Nothing, "current_stream": Nothing,
        "stream": lambda _: contextlib.nullcontext(),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)


@pytest.mark.usefixtures("_no_streams")
@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 23, 30])
def test_what_is_copied_ahead_comes_in_order_and_whole(monkeypatch, rows, pinned):
    """The order of copies to a CUDA device, where there is none: on the CPU, without streams."""
    staged = []
    copy = transfers.copy_in_threads
    monkeypatch.setattr(
        transfers, "copy_in_threads", lambda *pair: (staged.append(1), copy(*pair))[1]
    )
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _: pinned)
    whole = np.arange(23 * 4, dtype=np.uint16).reshape(23, 4)
    for images, in_place in ((read_only(whole), False), (whole[:, ::-1], False), (whole, pinned)):
        places = [slice(start, min(start + rows, 23)) for start in range(0, 23, rows)]
        found, staged[:] = [], []
        for place, batch in transfers._copied_ahead(images, places, torch.device("cpu")):
            assert np.array_equal(batch.numpy(), images[place])
            found.append(place)
        assert found == places
        assert len(staged) == (0 if in_place else len(places))
    assert list(transfers._copied_ahead(whole[:0], [], torch.device("cpu"))) == []


def test_a_large_array_is_copied_in_several_threads_and_whole():
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, (2999, 1500), np.uint8)
    for view in (source, source[:, ::-1], source[:3], source[:0]):
        target = np.zeros_like(view)
        transfers.copy_in_threads(target, view)
        assert np.array_equal(target, view)


class _Full:
    """A device that has room for so many images at once, and notes what it was given."""

    def __init__(self, monkeypatch, rows):
        self.tried, as_tensor = [], transfers.as_tensor

        def copy(array):
            if array.ndim == 2 and len(array):
                self.tried.append(len(array))
                if len(array) > rows:
                    raise torch.OutOfMemoryError(FULL)
            return as_tensor(array)

        monkeypatch.setattr(transfers, "as_tensor", copy)


def test_a_batch_that_is_too_large_is_halved_and_no_image_is_done_twice(monkeypatch, caplog):
    images, done = np.arange(46, dtype=np.uint8).reshape(23, 2), []
    full = _Full(monkeypatch, 3)
    transfers.for_each_batch(images, "cpu", 2, lambda part, batch: done.append((part, batch)))
    assert full.tried[:4] == [23, 11, 5, 2]
    assert np.array_equal(np.concatenate([batch for _, batch in done]), images)
    assert [part.start for part, _ in done] == [*range(0, 23, 2)]
    assert caplog.messages == [
        "device 'cpu': out of memory with 23 images at a time; going on with 11",
        "device 'cpu': out of memory with 11 images at a time; going on with 5",
        "device 'cpu': out of memory with 5 images at a time; going on with 2",
    ]


def test_work_that_runs_out_of_memory_half_way_goes_on_where_it_was():
    images, done = np.zeros((40, 2), np.uint8), []

    def work(part, batch):
        if part.start >= 10 and len(batch) > 3:
            raise torch.OutOfMemoryError(FULL)
        done.append(part)

    transfers._BATCH_BYTES["cpu"], before = 10, transfers._BATCH_BYTES["cpu"]
    try:
        transfers.for_each_batch(images, "cpu", 1, work)
    finally:
        transfers._BATCH_BYTES["cpu"] = before
    assert (done[0], done[1]) == (slice(0, 10), slice(10, 12))
    assert sorted(at for part in done for at in range(part.start, part.stop)) == [*range(40)]


def test_a_device_without_room_for_one_image_is_one_line(monkeypatch):
    _Full(monkeypatch, 0)
    with pytest.raises(DeviceMemoryError) as raised:
        transfers.for_each_batch(np.zeros((9, 2), np.uint8), "cpu", 5000, lambda *_: None)
    assert str(raised.value) == (
        "device 'cpu': out of memory with one image at a time, which takes 5.0 kB; end what else "
        "uses the device, run fewer tasks at once (--set cluster.workers=1), or use device: cpu"
    )


def test_prototypes_and_references_that_do_not_fit_are_one_line(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError(FULL)

    use = backends.load("torch:cpu")
    module = "pipeline.kernels.torch.as_tensor"
    monkeypatch.setattr(module, full)
    with pytest.raises(DeviceMemoryError, match="3 prototypes of 5 pixels, which take 360 B"):
        use.prepare(np.zeros((3, 5), np.int64), np.ones(3, np.int64), choose_arithmetic(1, 5, "u1"))
    with pytest.raises(
        DeviceMemoryError, match=r"1,234 references of 6 pixels, which take 29\.6 kB"
    ):
        use.prepare_search(np.zeros((1234, 6), np.uint8), (2, 3), "l1")


@pytest.mark.parametrize("device", ["torch:cpu"])
@TYPES
def test_every_kernel_counts_the_same_when_memory_runs_out_now_and_then(monkeypatch, device, dtype):
    rng, largest = np.random.default_rng(2), int(np.iinfo(dtype).max)
    images = rng.integers(0, largest + 1, (23, 12)).astype(dtype)
    numerators, n = some_prototypes(rng, 4, 12, largest, 6000)
    high = rng.integers(0, 4, (3, 12), np.uint8)
    _Full(monkeypatch, 3)
    check_classes(device, images >> 6, np.arange(23) % 4 - 1, 3, 1, high)
    check_distances(device, images, numerators, n, choose_arithmetic(6000, 12, dtype))
    shaped = images.reshape(23, 3, 4)
    for metric in ("l1", "l2"):
        check_search(device, shaped[:9], shaped[4:], metric, 4, cuts=[8])
