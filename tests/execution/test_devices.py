"""Which device tasks compute on, and how much of its memory each process may take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.execution import devices
from pipeline.execution.devices import Device, find_device
from pipeline.execution.workers import Workers
from pipeline.kernels import backends

THREADS = Workers(0, 4, 4, 10**10)


@pytest.fixture
def _one_gpu(monkeypatch):
    """A machine with a GPU of 80 GB, on which Triton can be used."""
    gpu = replace(
        backends.load("cpu"), device="triton:cuda", description="NVIDIA H100, Triton 3.6.0",
        memory=80 * 10**9,
    )  # fmt: skip
    monkeypatch.setattr(devices.backends, "load", lambda device: gpu)
    monkeypatch.setattr(devices.backends, "least_memory", lambda: 70 * 10**9)


def test_a_cpu_has_no_memory_of_its_own():
    assert find_device("cpu", THREADS, "threads") == Device("cpu", "cpu")
    found = find_device("torch:cpu", THREADS, "threads")
    assert found.memory is None
    assert found.description.startswith("cpu, plain torch ")


@pytest.mark.usefixtures("_one_gpu")
@pytest.mark.parametrize(("kind", "processes", "memory"), [
    ("threads", 0, 80), ("local", 1, 80), ("local", 4, 20), ("gpus", 2, 70),
])  # fmt: skip
def test_processes_share_a_gpu_unless_each_has_its_own(kind, processes, memory):
    workers = Workers(processes, 1, 8, 10**10)
    found = find_device("auto", workers, kind)
    assert found == Device("auto", "NVIDIA H100, Triton 3.6.0", memory * 10**9)


def test_what_workers_elsewhere_have_only_they_can_tell():
    found = find_device("cuda", replace(THREADS, processes=3, apart=True), "slurm")
    assert found == Device("cuda", "what each worker has (cuda)")


def test_a_device_that_is_not_there_is_refused_by_who_needs_it():
    assert find_device("torch:nothing", THREADS, "threads") == Device(
        "torch:nothing", "torch:nothing, which this machine has not"
    )
