"""The job file and the environment, as frozen typed settings.

A job file is YAML. Unknown keys are refused with the nearest known one, wrong types with the
key, the value and what was expected; nothing is guessed.
"""

from __future__ import annotations

import copy
import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.errors import ConfigError
from pipeline.image_settings import ImageSettings
from pipeline.places import locate
from pipeline.schema import METRICS
from pipeline.settings import Names, Settings, as_bytes, nearest, one_or_many, unique
from pipeline.urls import shown

DEVICE_PATTERN = r"^(auto|cpu|cuda(:\d+)?|torch:[a-z]+(:\d+)?)$"


def _cluster_mapping(text: str) -> dict[str, str]:
    """Return what a cluster given as one word means."""
    return {"kind": "scheduler", "address": text} if "://" in text else {"kind": text}


class ClusterSettings(Settings):
    """Where the tasks of a job run.

    Attributes
    ----------
    kind
        `threads` of this process, worker processes on this machine (`local`), or the workers
        of a running dask `scheduler`.
    workers
        Worker threads (`threads`) or processes (`local`); default: one per core.
    threads_per_worker
        Threads of each worker process.
    address
        Address of the scheduler, such as `tcp://host:8786`.
    memory
        Bytes of memory of each worker process (of this process, for `threads`), or a text such
        as `4 GB`; default: this machine's, shared evenly, or what the scheduler's workers have.
    """

    kind: Literal["threads", "local", "scheduler"] = "threads"
    workers: PositiveInt | None = None
    threads_per_worker: PositiveInt = 1
    address: str | None = None
    memory: Annotated[PositiveInt | None, BeforeValidator(as_bytes)] = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return _cluster_mapping(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _address_fits(self) -> ClusterSettings:
        if (self.kind == "scheduler") != (self.address is not None):
            raise ValueError("needs an address with kind scheduler, and only then")
        return self


def _place(value: object) -> Path:
    """Read a path or a URL."""
    if isinstance(value, str) and value:
        return locate(value)
    if value and hasattr(value, "joinpath"):
        return cast(Path, value)
    raise ValueError("expected a path or a URL")


class JobSettings(Settings):
    """One job: which images, which prototypes, which distances, where to.

    Attributes
    ----------
    name
        Name of the job; default: the job file's.
    images
        A name of the catalog, an image-set store, or a source; or a mapping that says more, see
        `ImageSettings`.
    classes
        The classes to tell apart; default: all of the image set.
    fit
        The split that prototypes are made from.
    evaluate
        The split or splits that are measured.
    prototypes
        What stands for a class: the `mean` of its images, or their `median`.
    metrics
        `l1`, `l2` or both.
    device
        `auto` (a CUDA device where there is one, else cpu), `cpu`, `cuda`, or `torch:cpu`. The
        result is the same to the bit.
    distances
        Whether every distance is written: `auto` does so up to 10**8 values.
    allow_empty_classes
        Accept classes without any image in the fit split; nothing is ever predicted as one.
    cluster
        Where tasks run.
    output
        The run folder, or its URL; default: `data/runs/NAME`.
    storage_options
        fsspec's options for what lies at URLs: keys, endpoints. Never written anywhere.
    """

    name: str = Field(min_length=1, pattern=r"^[^/\x00]+$")
    images: ImageSettings
    classes: Names | None = None
    fit: str = "train"
    evaluate: Annotated[Names, BeforeValidator(one_or_many)] = ("test",)
    prototypes: Literal["mean", "median"] = "mean"
    metrics: Annotated[
        tuple[Literal["l1", "l2"], ...],
        Field(min_length=1),
        BeforeValidator(one_or_many),
        AfterValidator(unique),
    ] = METRICS  # type: ignore[assignment]
    device: str = Field(default="auto", pattern=DEVICE_PATTERN)
    distances: Literal["auto", "write", "skip"] = "auto"
    allow_empty_classes: bool = False
    cluster: ClusterSettings = ClusterSettings()
    output: Annotated[Path, PlainValidator(_place), PlainSerializer(shown)]
    storage_options: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _options_for_urls(cls, value: object) -> object:
        """Give the storage options to the output, and to images that have none of their own."""
        if not isinstance(value, dict) or not isinstance(value.get("storage_options"), dict):
            return value
        options, content = value["storage_options"], dict(value)
        if isinstance(content.get("output"), str):
            content["output"] = locate(content["output"], options)
        images = content.get("images")
        images = {"source": images} if isinstance(images, str) else images
        if isinstance(images, dict):
            content["images"] = {"storage_options": options} | images
        return content


class Environment(BaseSettings):
    """Settings from the environment, each with the prefix `PIXSIM_`.

    Attributes
    ----------
    datasets
        A folder with downloaded data sets, one folder each.
    data
        Where stores, downloads and runs go.
    catalog
        A catalog of named data sets to use instead of `data/catalog.yml`.
    """

    model_config = SettingsConfigDict(env_prefix="PIXSIM_", frozen=True)

    datasets: Path | None = None
    data: Path = Path("data")
    catalog: Path | None = None


def load_environment() -> Environment:
    """Read the environment variables `PIXSIM_*`."""
    return Environment()


def load_job(
    path: Path, overrides: Iterable[str] = (), output: Path | str | None = None
) -> JobSettings:
    """Read a job file.

    Parameters
    ----------
    path
        The YAML file.
    overrides
        `key=value` texts that replace keys of the file; values are YAML, and a dot in the key
        reaches into a mapping (`cluster.workers=4`).
    output
        Replaces the run folder.

    Raises
    ------
    ConfigError
        Where the file cannot be read, or holds unknown keys or wrong values.
    """
    content = with_overrides(_load_mapping(path), overrides)
    if output is not None:
        content["output"] = str(output)
    content.setdefault("name", path.stem)
    return make_job(content, where=str(path))


def _load_mapping(path: Path) -> dict[str, Any]:
    content = load_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {_describe(content)}, expected a mapping of settings")
    return content


def make_job(content: Mapping[str, Any], where: str = "job") -> JobSettings:
    """Validate the settings of a job given as a mapping."""
    settings = dict(content)
    _refuse_unknown(settings, JobSettings, where, "")
    models: dict[str, type[BaseModel]] = {"cluster": ClusterSettings, "images": ImageSettings}
    for key, model in models.items():
        if isinstance(settings.get(key), dict):
            _refuse_unknown(settings[key], model, where, f"{key}.")
    if "output" not in settings:
        settings["output"] = load_environment().data / "runs" / str(settings.get("name", "job"))
    try:
        return JobSettings.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_problem(error)}") from None


def make_images(
    content: str | Mapping[str, Any] | ImageSettings, overrides: Iterable[str] = ()
) -> ImageSettings:
    """Validate what a job says of its images: a source as a text, or a mapping of settings.

    Parameters
    ----------
    content
        The text or the mapping.
    overrides
        `key=value` texts that replace settings; see `load_job`.

    Raises
    ------
    ConfigError
        Where keys are unknown or values wrong.
    """
    changes = list(overrides)
    if isinstance(content, ImageSettings):
        if not changes:
            return content
        hidden = {"storage_options": content.storage_options}
        content = content.model_dump(exclude_unset=True) | hidden
    settings = {"source": content} if isinstance(content, str) else dict(content)
    settings = with_overrides(settings, changes)
    _refuse_unknown(settings, ImageSettings, "images", "")
    try:
        return ImageSettings.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"images: {_first_problem(error)}") from None


def load_images(path: Path, overrides: Iterable[str] = ()) -> ImageSettings:
    """Read the images of a job file; overrides are keys of its `images`.

    Raises
    ------
    ConfigError
        Where the file cannot be read, or holds unknown keys or wrong values.
    """
    content = _load_mapping(path)
    images = content.get("images")
    content["images"] = with_overrides(
        {"source": images} if isinstance(images, str) else images, overrides
    )
    content.setdefault("name", path.stem)
    return make_job(content, where=str(path)).images


def with_overrides(content: Any, overrides: Iterable[str]) -> Any:
    """Return a mapping with `key=value` texts put into it; see `load_job`."""
    if not isinstance(content, dict):
        return content
    changed = copy.deepcopy(content)
    for override in overrides:
        _override(changed, override)
    return changed


def make_cluster(text: str) -> ClusterSettings:
    """Return cluster settings from `threads`, `local` or the address of a scheduler."""
    try:
        return ClusterSettings.model_validate(text)
    except ValidationError as error:
        raise ConfigError(f"cluster '{text}': {_first_problem(error)}") from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """Plain types only, and no key twice: YAML's own loaders keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {key!r} is given twice")
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> Any:
    """Read a YAML file with plain types only."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)  # noqa: S506
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; expected a job file such as {_example(path)}"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read as YAML: {reason}") from None


def _example(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("workflows")
    files = sorted(file.name for file in folder.glob("*.yml"))
    return f"{folder / nearest_file(path.name, files)}" if files else "workflows/digits.yml"


def nearest_file(name: str, files: Sequence[str]) -> str:
    """Return the file name most like `name`."""
    return (difflib.get_close_matches(name, files, n=1, cutoff=0.0) or list(files))[0]


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[\w.]+", key):
        raise ConfigError(f"--set {override}: expected KEY=VALUE, such as --set device=cpu")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: {text!r} is not a YAML value") from None
    *parents, last = key.split(".")
    place = content
    for parent in parents:
        inner = place.setdefault(parent, {})
        if isinstance(inner, str):
            inner = {"source": inner} if parent == "images" else _cluster_mapping(inner)
            place[parent] = inner
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: '{parent}' is {_describe(inner)}, not a mapping")
        place = inner
    place[last] = value


def _refuse_unknown(
    content: Mapping[str, Any], model: type[BaseModel], where: str, prefix: str
) -> None:
    for key in content:
        if key not in model.model_fields:
            hint = nearest(str(key), model.model_fields)
            raise ConfigError(f"{where}: unknown key '{prefix}{key}'; {hint}")


# a value may be a page long, or a maze of aliases
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100
_short.maxlevel = 3


def _describe(value: object) -> str:
    return "nothing" if value is None else f"{_short.repr(value)} ({type(value).__name__})"


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    keys = [str(part) for part in problem["loc"]]
    if problem["type"] == "missing":
        return f"'{'.'.join(keys)}' is missing; every job needs it"
    where = ".".join(keys) or "the job"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if "storage_options" in [*keys, *(problem["input"] if _is_mapping(problem["input"]) else ())]:
        return f"'{where}': {message}"  # the value may hold keys and passwords
    if problem["type"] == "string_pattern_mismatch" and keys == ["device"]:
        message = "expected auto, cpu, cuda, cuda:N or torch:DEVICE"
    return f"'{where}' is {_describe(problem['input'])}: {message}"
