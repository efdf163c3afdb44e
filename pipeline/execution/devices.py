"""What tasks compute on: which kernels, and how much of a device's memory each process may take.

Threads of this process, and worker processes on this machine, are asked about here: several worker
processes on one GPU share it, and those of a cluster of kind `gpus` have one each. What workers
elsewhere have, only they can tell, when their first task begins.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.core.errors import ConfigError
from pipeline.execution.workers import Workers
from pipeline.kernels import backends

ELSEWHERE = "what each worker has"


@dataclass(frozen=True)
class Device:
    """What the tasks of one process compute on.

    Attributes
    ----------
    name
        What tasks load, as for `backends.load`.
    description
        One line: the device, and what runs the kernels.
    memory
        Bytes that one process may take of it; None where it has none of its own, or none is known.
    widens
        Whether its kernels work on widened copies, see `kernels.torch`.
    """

    name: str
    description: str
    memory: int | None = None
    widens: bool = False

    @property
    def host(self) -> str:
        """What is loaded for what is done beside it, on the CPU of this process."""
        return self.name if self.name == backends.NUMPY else "cpu"


def find_device(device: str, workers: Workers, kind: str, work: int | None = None) -> Device:
    """Tell what tasks of a job will compute on.

    Parameters
    ----------
    device
        As for `backends.load`.
    workers
        What the job runs on.
    kind
        The kind of its cluster.
    work
        How much there is to do, as for `backends.for_work`; default: much.

    A device that is not there is refused by the first task that needs it: what is complete already
    needs none.
    """
    if workers.apart:
        return Device(device, f"{ELSEWHERE} ({device})")
    if work is not None:
        device = backends.for_work(device, work)
    try:
        use = backends.load(device)
    except ConfigError:
        return Device(device, f"{device}, which this machine has not")
    memory = use.memory
    if memory is not None:
        memory = backends.least_memory() if kind == "gpus" else memory // max(1, workers.processes)
    return Device(device, use.description, memory, use.device.startswith("torch:"))
