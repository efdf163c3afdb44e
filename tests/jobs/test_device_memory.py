"""The plan of a job on a device with memory of its own: tiles and groups that fit, or a refusal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from jobs_for_tests import NAMES, make_arrays, make_images, make_settings

import pipeline
from pipeline.core.errors import MemoryLimitError
from pipeline.execution.devices import Device
from pipeline.execution.workers import Workers
from pipeline.jobs import audit_plan, memory_model, plan, search_plan
from pipeline.jobs.audit_plan import plan_audit
from pipeline.jobs.memory_model import Load, fitting_pixels, footprint
from pipeline.jobs.plan import plan_job
from pipeline.kernels import backends
from pipeline.sources.arrays import from_arrays

GPU = "NVIDIA H100, Triton 3.6.0"
THREADS = Workers(0, 4, 4, 10**12)
MEDIANS = Load(
    classes=1000, pixels=3 * 64 * 64, sample_bytes=3 * 64 * 64, shard=2048, partitions=100,
    tables=1, digits=2, step=4096, steps=10, evaluated_shard=2048, metrics=2, splits=1, write=False,
)  # fmt: skip


def on_gpu(monkeypatch, memory, **more):
    """Let plans be for a GPU of so many bytes."""
    device = Device("cpu", GPU, memory, **more)  # where it is run after all
    for module in (plan, audit_plan):
        monkeypatch.setattr(module, "find_device", lambda *_: device)
    return device


def test_counts_of_values_are_taken_in_tiles_that_fit_the_device():
    # 1,024 bytes a pixel and class, for each of four tasks: 50 GB for whole images
    widths = []
    for memory in (6, 20, 80):
        device = Device("cuda", GPU, memory * 10**9)
        width = fitting_pixels(MEDIANS, THREADS, device)
        tiles = [(0, width)]
        assert footprint(MEDIANS, THREADS, tiles, device=device).device_fit <= device.memory
        widths.append(width)
    assert widths[0] < widths[1] < widths[2] == MEDIANS.pixels
    assert fitting_pixels(MEDIANS, THREADS, Device("cpu", "cpu")) == MEDIANS.pixels
    # what works on widened copies takes more for the same pixels
    plain = Device("cuda", GPU, 20 * 10**9, widens=True)
    assert fitting_pixels(MEDIANS, THREADS, plain) < widths[1]


@pytest.mark.parametrize("name", ["classes", "pixels", "sample_bytes", "shard", "tables", "step"])
def test_more_of_anything_takes_no_less_of_the_device(name):
    device, load = Device("cuda", GPU, 10**12), replace(MEDIANS, tables=0)
    more = replace(load, **{name: 4 * getattr(load, name) + 1})
    needed = [footprint(one, THREADS, [(0, one.pixels)], device=device) for one in (load, more)]
    assert needed[1].device_fit >= needed[0].device_fit
    assert needed[1].device_evaluate >= needed[0].device_evaluate
    assert needed[1].device > 0
    assert footprint(load, THREADS, [(0, load.pixels)], device=Device("cpu", "cpu")).device == 0


def test_a_job_that_the_device_cannot_hold_is_refused_with_the_numbers(tmp_path, monkeypatch):
    images = make_images(tmp_path / "images.zarr")
    settings = make_settings(images, tmp_path / "run")
    on_gpu(monkeypatch, 1000)
    with pytest.raises(MemoryLimitError) as raised:
        plan_job(settings, images, Workers(0, 2, 2, 10**10))
    said = str(raised.value)
    assert said.startswith(f"the job needs 2.52e-05 GB of {GPU} for one process (prototypes ")
    assert "expected at most 1e-06 GB, what it may take; run fewer tasks at once" in said
    assert said.endswith("or run it with --set device=cpu")
    with pytest.raises(MemoryLimitError, match="let fewer worker processes share it"):
        plan_job(settings, images, Workers(3, 1, 3, 10**10))


def test_tiles_of_a_job_tell_of_the_device(tmp_path, monkeypatch):
    images = make_images(tmp_path / "images.zarr")
    settings = make_settings(images, tmp_path / "run", prototypes="median")
    workers, most = Workers(0, 1, 1, 10**10), None
    for memory in range(200_000, 10_000, -5_000):
        on_gpu(monkeypatch, memory)
        made = plan_job(settings, images, workers)
        if len(made.tiles) > 1:
            most = memory
            break
    assert most is not None
    assert made.footprint.device_fit <= most
    assert made.tiling.endswith(f"to fit 10 GB, and {most / 1e9:.3g} GB of the device")


def test_the_plan_and_the_manifest_say_what_it_computes_on(tmp_path, monkeypatch, capsys):
    images = make_images(tmp_path / "images.zarr")
    settings = make_settings(images, tmp_path / "run")
    found = pipeline.forecast(settings)
    assert found["device"]["description"] == "cpu, NumPy"
    assert found["device"]["memory"] is None
    first = pipeline.run_job(settings)
    assert first.manifest["device"] == "cpu, NumPy"
    on_gpu(monkeypatch, 80 * 10**9)
    again = pipeline.run_job(settings.model_copy(update={"output": tmp_path / "again"}))
    assert again.manifest["device"] == GPU
    assert again.manifest["digests"] == first.manifest["digests"]
    assert again.manifest["identity"] == first.manifest["identity"]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("more", [
    {}, {"prototypes": "median", "evaluate": ["train", "test"], "leave_one_out": True},
])  # fmt: skip
def test_numba_counts_what_numpy_counts_where_there_is_more_to_do(
    dtype, more, tmp_path, monkeypatch
):
    images = make_images(tmp_path / "images.zarr", make_arrays(dtype=dtype))
    little = make_settings(images, tmp_path / "little", **more)
    work = plan_job(little, images).additions
    monkeypatch.setattr(backends, "LITTLE", work)
    first = pipeline.run_job(little)
    monkeypatch.setattr(backends, "LITTLE", work - 1)
    second = pipeline.run_job(make_settings(images, tmp_path / "much", **more))
    assert [run.manifest["device"] for run in (first, second)] == ["cpu, NumPy", "cpu"]
    assert first.manifest["digests"] == second.manifest["digests"]


def large_job(tmp_path):
    splits = {
        name: (np.zeros((count, 64, 64), np.uint8), (np.arange(count) % 4).astype(np.int32))
        for name, count in (("train", 3000), ("test", 600))
    }
    path = tmp_path / "large.zarr"
    pipeline.ingest(from_arrays(splits, NAMES), path, shard_samples=256)
    return path, make_settings(path, tmp_path / "run", neighbours={"k": 3}, distances="skip")


def test_groups_that_are_searched_stay_on_a_device_as_far_as_they_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(search_plan, "_GROUP_BYTES", 2**20)
    path, job = large_job(tmp_path)
    workers, seen = Workers(0, 2, 2, 10**11), []
    for memory in (20, 400):
        on_gpu(monkeypatch, memory * 10**6)
        made = plan_job(job, path, workers)
        assert made.footprint.device_search == made.arrangement.device <= memory * 10**6
        seen.append((made.arrangement.resident, made.arrangement.reads(made.search, workers)))
    assert made.search.references.steps == 12
    assert [resident for resident, _ in seen] == [2, 12]
    assert seen[1][1] == 1


def test_an_audit_that_the_device_cannot_hold_is_refused(tmp_path, monkeypatch):
    images = make_images(tmp_path / "images.zarr")
    settings = pipeline.load_audit(images, output=tmp_path / "audit")
    workers = Workers(0, 2, 2, 10**10)
    on_gpu(monkeypatch, 10**9)
    assert plan_audit(settings, images, workers).device.description == GPU
    on_gpu(monkeypatch, 10**4)
    with pytest.raises(MemoryLimitError, match=f"GB of {GPU} for one process, expected at most"):
        plan_audit(settings, images, workers)


def test_batches_are_planned_as_they_are_made():
    transfers = pytest.importorskip("pipeline.kernels.transfers")
    assert transfers._SENT == memory_model._SENT
