"""Where tasks run, as settings: threads, worker processes, a scheduler, Slurm, Kubernetes, GPUs.

A cluster is written as one text: `threads`, `local`, the address of a scheduler, the name of a
file in a folder `workflows/clusters`, or the path of such a file; or as a mapping of settings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from pipeline.config.settings import LocalPath, Settings, as_bytes
from pipeline.config.yaml_files import first_problem, load_mapping, refuse_unknown
from pipeline.core.arguments import checked
from pipeline.core.errors import ConfigError, describe, nearest
from pipeline.core.paths import at_home

FOLDER = Path("workflows", "clusters")
"""Where files of clusters lie: in the working directory, and in the package."""

_SUFFIXES = (".yml", ".yaml")
# `days-hours:minutes:seconds` and the shorter forms, as Slurm writes them
_WALLTIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d\d?))?(?::(\d\d?))?")


def walltime_seconds(text: str) -> int:
    """Return the seconds of a wall time in one of Slurm's forms.

    `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`, `days-hours:minutes`,
    `days-hours:minutes:seconds`.

    Raises
    ------
    ValueError
        Where it is none of these, or no time at all.
    """
    match = _WALLTIME.fullmatch(text.strip())
    if match is None:
        raise ValueError("expected a wall time such as '08:00:00' or '2-12:00:00' (days-hours)")
    days, *rest = match.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None or len(numbers) == 3:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    total = ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    if not total:
        raise ValueError("expected more than no time")
    return total


def _as_walltime(value: object) -> object:
    """Refuse numbers: YAML reads 12:00:00 without quotes as one, of seconds."""
    if isinstance(value, int):
        raise ValueError("expected a wall time in quotes, such as '08:00:00'")
    if isinstance(value, str):
        walltime_seconds(value)
    return value


class TlsSettings(Settings):
    """The files of TLS: who signed, and what this side shows of itself."""

    ca_file: LocalPath
    """Certificates of the authority that both sides trust, PEM."""
    cert: LocalPath
    """The certificate of this side, PEM."""
    key: LocalPath
    """The key of this side, PEM."""


class ClusterSettings(Settings):
    """Where the tasks of a job run.

    Whatever is put into dask's configuration from here (`memory`, `walltime`, `tls`, `options` of
    Slurm and Kubernetes, `dask`) is a default: dask's own files and environment variables win.
    """

    kind: Literal["threads", "local", "scheduler", "slurm", "kubernetes", "gpus"] = "threads"
    """`threads` of this process; worker processes on this machine (`local`), or one for each of its
    GPUs (`gpus`); the workers of a running dask `scheduler`; jobs of `slurm` (needs dask-jobqueue);
    pods of `kubernetes` (needs dask-kubernetes and its operator).
    """
    workers: PositiveInt | None = None
    """Worker threads (`threads`), processes (`local`, `slurm`), pods (`kubernetes`) or GPUs
    (`gpus`); default: one per core, or GPU. Of a `scheduler`: how many to wait for; default: one.
    """
    threads_per_worker: PositiveInt = 1
    """Threads of each worker process."""
    address: str | None = None
    """The address of the scheduler, such as `tcp://host:8786` or `tls://host:8786`."""
    scheduler_file: LocalPath | None = None
    """A file that the scheduler wrote its address into; default, without an address either:
    `DASK_SCHEDULER_ADDRESS`.
    """
    memory: Annotated[PositiveInt | None, BeforeValidator(as_bytes)] = None
    """Bytes of memory of each worker process (of this process, for `threads`), or a text such as `4
    GB`; default: this machine's, shared evenly, or what the scheduler's workers have.
    """
    tls: TlsSettings | None = None
    """The files of TLS, for `scheduler` and `slurm`. Without them Slurm's workers and their
    scheduler encrypt with a certificate of their own, made for the job. Inside Kubernetes dask's
    operator speaks plain TCP. What `local` and `gpus` say stays on this machine.
    """
    walltime: Annotated[str | None, BeforeValidator(_as_walltime)] = None
    """How long a job of Slurm may run, in Slurm's forms, such as `08:00:00`. Workers end by
    themselves before it is over, and new ones are asked for.
    """
    grace: NonNegativeFloat = 20.0
    """Seconds that running tasks have to end when the job is told to stop."""
    options: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)
    """Of `slurm`: keys of `jobqueue.slurm` (queue, account, interface, job_extra_directives); of
    `kubernetes`: keys of `kubernetes` (image, namespace, env, custom_cluster_spec); of `local` and
    `gpus`: the `dashboard_address`. Never written anywhere.
    """
    dask: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)
    """Dask's configuration, as a nested mapping (`distributed: {...}`). Never written anywhere."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return cluster_mapping(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_together(self) -> ClusterSettings:
        for key, kinds in _KINDS_OF.items():
            if self.kind not in kinds and key in self.model_fields_set and getattr(self, key):
                raise ValueError(
                    f"kind {self.kind} takes no {key}, which only {_listed(kinds)} does; leave "
                    "it out, or change the kind"
                )
        if self.address is not None and self.scheduler_file is not None:
            raise ValueError("names an address and a scheduler_file; one of them is enough")
        if self.address is not None and "://" not in self.address:
            raise ValueError(
                f"the address {self.address!r} has no protocol, expected such as "
                f"tcp://{self.address} or tls://{self.address}"
            )
        if self.tls is not None and (self.address or "tls://").partition("://")[0] != "tls":
            raise ValueError(
                f"has files of TLS for {self.address}, which is not encrypted; expected an "
                "address that begins with tls://"
            )
        if self.kind == "gpus" and self.threads_per_worker != 1:
            raise ValueError("a worker with a GPU has one thread; leave threads_per_worker out")
        return self


# which kinds have a use for a setting
_KINDS_OF: dict[str, tuple[str, ...]] = {
    "address": ("scheduler",),
    "scheduler_file": ("scheduler",),
    "tls": ("scheduler", "slurm"),
    "walltime": ("slurm",),
    "options": ("local", "slurm", "kubernetes", "gpus"),
    "dask": ("local", "scheduler", "slurm", "kubernetes", "gpus"),
}


def _listed(kinds: tuple[str, ...]) -> str:
    return kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:-1])} or {kinds[-1]}"


@checked
def make_cluster(text: str | Path, beside: Path | None = None) -> ClusterSettings:
    """Return the settings of a cluster.

    Parameters
    ----------
    text
        `threads`, `local`, the address of a scheduler, the name of a file in a folder `clusters`
        (of `workflows` in the working directory, of `beside`, of the package), or the path of
        such a file.
    beside
        A folder: of a job file.

    Raises
    ------
    ConfigError
        Where there is no such cluster, or its file holds unknown keys or wrong values.
    """
    if not isinstance(text, str | os.PathLike):
        raise ConfigError(f"cluster: {describe(text)}, expected a text or a path, such as 'local'")
    try:
        return ClusterSettings.model_validate(cluster_mapping(str(text), beside))
    except ValidationError as error:
        raise ConfigError(f"cluster '{text}': {first_problem(error)}") from None


def cluster_mapping(text: str, beside: Path | None = None) -> dict[str, Any]:
    """Return what a cluster given as one text means; see `make_cluster`."""
    if "://" in text:
        return {"kind": "scheduler", "address": text}
    path = _find_file(text, beside)
    if path is None:
        return {"kind": text}
    content = load_mapping(path)
    refuse_unknown(content, ClusterSettings, str(path), "")
    return content


def _find_file(text: str, beside: Path | None) -> Path | None:
    """Return the file of a cluster; nothing for `threads` and `local`, which need none."""
    if "/" in text or text.endswith(_SUFFIXES):
        return Path(at_home(text))
    files = {path.stem: path for path in _files(beside)}
    if text in files:
        return files[text]
    if text in ("threads", "local"):
        return None
    raise ConfigError(
        f"there is no cluster '{text}'; {nearest(text, sorted(files))}: expected threads, local, "
        f"the address of a scheduler (tcp://host:8786), or the name of a file in {FOLDER}"
    )


def _files(beside: Path | None) -> Iterator[Path]:
    """Yield the files of clusters, those that win last."""
    package = Path(__file__).parents[1]
    installed = package / FOLDER
    folders = [installed if installed.is_dir() else package.parent / FOLDER]
    if beside is not None:
        folders.append(beside / FOLDER.name)
    for folder in [*folders, FOLDER]:
        for suffix in _SUFFIXES:
            yield from sorted(folder.glob(f"*{suffix}"))
