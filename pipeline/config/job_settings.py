"""The job file and the environment, as frozen typed settings.

A job file is YAML. Unknown keys are refused with the nearest known one, wrong types with the
key, the value and what was expected; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.config.cluster_settings import ClusterSettings, cluster_mapping
from pipeline.config.image_settings import ImageSettings
from pipeline.config.overrides import with_overrides
from pipeline.config.search_settings import AuditChecks, Metrics, NeighbourSettings
from pipeline.config.settings import LocalPath, Names, Settings, one_or_many
from pipeline.config.splits import Share, choose_splits, describe_choice, measure_held_out
from pipeline.config.yaml_files import first_problem, load_mapping, refuse_unknown
from pipeline.core.arguments import checked
from pipeline.core.errors import ConfigError, describe
from pipeline.core.paths import is_path_like, locate, options_of, short_name, shown
from pipeline.core.schema import METRICS

DEVICE_PATTERN = r"^(auto|cpu|cuda(:\d+)?|torch:[a-z]+(:\d+)?)$"


def as_path(value: object) -> Path:
    """Take a path or a URL."""
    if is_path_like(value):
        return locate(cast(Path, value))
    raise ValueError("expected a path or a URL")


Place = Annotated[Path, PlainValidator(as_path), PlainSerializer(shown)]


class JobSettings(Settings):
    """One job: which images, which prototypes, which distances, where to."""

    name: str = Field(min_length=1, pattern=r"^[^/\x00]+$")
    """The name of the job; default: that of the job file, or of its images."""
    images: ImageSettings
    """A name of the catalog, an image-set store, or a source; or a mapping that says more."""
    classes: Names | None = None
    """The classes to tell apart; default: all of the image set."""
    fit: str | None = None
    """The split that prototypes are made from; default: `train`, in any case, or the only one."""
    evaluate: Annotated[Names, BeforeValidator(one_or_many)] | None = None
    """The split, or list of splits, that is measured; default: `test`, else `valid`, `val` or
    `validation`, else `fit`.
    """
    leave_one_out: bool | None = None
    """Whether images of `fit` are measured from the prototype that their class has without them;
    default: where `evaluate` names `fit`.
    """
    prototypes: Literal["mean", "median"] = "mean"
    """What stands for a class: the `mean` of its images, or their `median`."""
    metrics: Metrics = METRICS  # type: ignore[assignment]
    """`l1` (mean absolute difference), `l2` (root mean squared difference), or both."""
    neighbours: NeighbourSettings | None = None
    """Also find the nearest images of each measured one, such as `{k: 10, among: train}`; default:
    none.
    """
    audit: AuditChecks | None = None
    """Also look for what is wrong with the image set, into `audit` in the output, such as
    `{variants: mirror}`; default: none.
    """
    exclude: Place | None = None
    """Samples to leave out, as if they were not in the image set: a folder with a table
    `keep.parquet`, or a Parquet or CSV file with the columns `split`, `sample` (its index there)
    and perhaps `keep` (rows with true are not meant) and `reason`; default: none.
    """
    holdout: Share | None = None
    """For image sets with one split: the share of `fit` that is not fitted and that alone is
    measured, such as `20%` or `0.2`. Of each class these are the images whose content has the
    smallest SHA-256, as many as come nearest to the share. Neither order nor shards play a part,
    and exact copies are never on both sides: where their labels differ, all go with the lowest;
    default: none.
    """
    device: str = Field(default="auto", pattern=DEVICE_PATTERN)
    """`auto` (a CUDA device where there is one, else cpu), `cpu`, `cuda`, `cuda:N` or
    `torch:DEVICE`. The result is the same to the bit.
    """
    distances: Literal["auto", "write", "skip"] = "auto"
    """Whether every distance is written: `write`, `skip`, or `auto`, up to 10^8 values."""
    report: bool = True
    """Whether the run ends with a page of pictures, `report.html`."""
    allow_empty_classes: bool = False
    """Accept classes without any image in `fit`; nothing is ever predicted as one."""
    cluster: ClusterSettings = ClusterSettings()
    """Where tasks run: a name, the address of a dask scheduler, or a mapping."""
    output: Place
    """The run folder, or its URL; default: `data/runs/NAME`."""
    storage_options: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)
    """fsspec's options for what lies at URLs: keys, endpoints. Never written anywhere."""

    @model_validator(mode="before")
    @classmethod
    def _measure_held_out(cls, value: object) -> object:
        return measure_held_out(value)

    @field_validator("leave_one_out")
    @classmethod
    def _require_fitted(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        fit, evaluate = info.data.get("fit"), info.data.get("evaluate")
        if value and evaluate is not None and (fit or "train") not in evaluate:
            raise ValueError("expected the split of 'fit' in 'evaluate'; name it there, or say no")
        return value

    @field_validator("neighbours", "audit", mode="before")
    @classmethod
    def _require_mapping(cls, value: object, info: ValidationInfo) -> object:
        if value is None or isinstance(value, dict | NeighbourSettings | AuditChecks):
            return value
        example = "among: train" if info.field_name == "neighbours" else "variants: [mirror]"
        raise ValueError(f"expected a mapping such as {{k: 10, {example}}}")

    @model_validator(mode="before")
    @classmethod
    def _options_for_urls(cls, value: object) -> object:
        """Give the storage options to the places, and to images that have none of their own."""
        if not isinstance(value, dict) or not isinstance(value.get("storage_options"), dict):
            return value
        options, content = value["storage_options"], dict(value)
        for key in ("output", "exclude"):
            if isinstance(content.get(key), str):
                content[key] = locate(content[key], options)
        images = content.get("images")
        images = {"source": images} if isinstance(images, str) else images
        if isinstance(images, dict):
            content["images"] = {"storage_options": options} | images
        return content

    @property
    def leaves_one_out(self) -> bool:
        """Whether images that prototypes are made of are measured, and that without themselves."""
        if self.leave_one_out is False or self.holdout is not None:
            return False
        return self.fit in (self.evaluate or ())

    @property
    def names_splits(self) -> bool:
        """Whether it names what is fitted and what is measured, or that was chosen by now."""
        return self.fit is not None and self.evaluate is not None

    def with_splits(self, counts: Mapping[str, int]) -> ChosenJob:
        """Return the job with the splits that it does not name chosen, see `choose_splits`.

        Parameters
        ----------
        counts
            How many labelled images each split of its image set holds.

        Raises
        ------
        StoreError
            Where no split is plainly the one to fit.
        """
        alone = self.holdout is not None or bool(self.leave_one_out)
        fit, evaluate = choose_splits(counts, self.fit, self.evaluate, alone=alone)
        known: dict[str, Any] = dict(self)
        chosen = ChosenJob.model_construct(
            self.model_fields_set | {"fit", "evaluate"},
            **known | {"fit": fit, "evaluate": evaluate},
        )
        chosen._left = {n: count for n, count in counts.items() if n not in (fit, *evaluate)}
        return chosen

    @property
    def named_cluster(self) -> ClusterSettings | None:
        """The cluster that the job names; nothing where it leaves that to its caller."""
        return self.cluster if "cluster" in self.model_fields_set else None


class ChosenJob(JobSettings):
    """A job whose splits are known, by its settings or by what there is."""

    fit: str
    evaluate: Names
    _left: dict[str, int] = PrivateAttr(default_factory=dict)

    @property
    def choice(self) -> str:
        """One line that says which splits it takes, and which it does not."""
        alone = self.leaves_one_out
        return describe_choice(self.fit, self.evaluate, self._left, leaves_one_out=alone)

    def decides(self) -> dict[str, Any]:
        """Return what of these settings decides the result of a run by itself; None: not asked."""
        return {
            "fit": self.fit,
            "evaluate": list(self.evaluate),
            "prototypes": self.prototypes,
            "metrics": list(self.metrics),
            "allow_empty_classes": self.allow_empty_classes,
            "neighbours": self._decides_neighbours(),
            "leave_one_out": self.leaves_one_out or None,
        } | ({} if self.holdout is None else {"holdout": self.holdout})

    def _decides_neighbours(self) -> dict[str, Any] | None:
        wanted = self.neighbours
        if wanted is None:
            return None
        among, metrics = wanted.among or (self.fit,), wanted.metrics or self.metrics
        return {"k": wanted.k, "among": list(among), "metrics": list(metrics)}


class Environment(BaseSettings):
    """Settings from the environment, each with the prefix `PIXSIM_`."""

    model_config = SettingsConfigDict(
        env_prefix="PIXSIM_", frozen=True, use_attribute_docstrings=True
    )

    datasets: LocalPath | None = None
    """A folder with downloaded data sets, one folder each."""
    data: LocalPath = Path("data")
    """Where stores, downloads and runs go."""
    catalog: LocalPath | None = None
    """A catalog of named data sets to use instead of `data/catalog.yml`."""


def load_environment() -> Environment:
    """Read the environment variables `PIXSIM_*`."""
    try:
        return Environment()
    except ValidationError as error:
        raise ConfigError(f"environment variables PIXSIM_*: {first_problem(error)}") from None


@checked
def load_job(
    path: Path | str,
    overrides: Iterable[str] = (),
    output: Path | str | None = None,
    cluster: str | None = None,
    exclude: Path | str | None = None,
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
    cluster
        Replaces the cluster; a text as in `make_cluster`. Overrides are put into it.
    exclude
        Replaces the samples that are left out.

    Raises
    ------
    ConfigError
        Where the file cannot be read, or holds unknown keys or wrong values.
    """
    path = locate(path)
    content = {"name": path.stem, **load_mapping(path, key="images")}
    changes = {"output": output, "exclude": exclude, "cluster": cluster}
    return changed_job(content, changes, overrides, path.parent, str(path))


def changed_job(
    content: Mapping[str, Any],
    changes: Mapping[str, Any],
    overrides: Iterable[str],
    beside: Path | None,
    where: str,
) -> JobSettings:
    """Validate the content of a job file of which keys are replaced.

    `changes` are by key, None: as it is; `overrides` as of `load_job`; `beside` is the folder of
    the job file.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    changed = dict(content)
    if "cluster" in given:
        changed["cluster"] = given.pop("cluster")
    changed = _with_cluster(changed, beside)
    changed = _with_cluster(with_overrides(changed, overrides), beside)
    return make_job(changed | given, where=where)


def _with_cluster(content: dict[str, Any], beside: Path | None) -> dict[str, Any]:
    """Return the content of a job file with a cluster that is one text spelled out."""
    text = content.get("cluster")
    return (
        content | {"cluster": cluster_mapping(text, beside)} if isinstance(text, str) else content
    )


@checked
def make_job(content: Mapping[str, Any], where: str = "job") -> JobSettings:
    """Validate the settings of a job given as a mapping.

    Examples
    --------
    >>> import pipeline
    >>> pipeline.make_job({"images": "digits", "evaluate": "test"}).evaluate
    ('test',)
    >>> pipeline.make_job({"name": "digits", "images": "digits", "prototype": "median"})
    Traceback (most recent call last):
    pipeline.core.errors.ConfigError: job: unknown key 'prototype'; did you mean 'prototypes'?
    """
    settings = _with_cluster(dict(require_mapping(content, where)), None)
    refuse_unknown(settings, JobSettings, where, "")
    images = settings.get("images")
    source = images.get("source") if isinstance(images, Mapping) else images
    if is_path_like(source):
        settings.setdefault("name", short_name(str(source)))
    models: dict[str, type[BaseModel]] = {
        "cluster": ClusterSettings, "images": ImageSettings, "neighbours": NeighbourSettings,
        "audit": AuditChecks,
    }  # fmt: skip
    for key, model in models.items():
        if isinstance(settings.get(key), dict):
            refuse_unknown(settings[key], model, where, f"{key}.")
    if "output" not in settings:
        settings["output"] = load_environment().data / "runs" / str(settings.get("name", "job"))
    try:
        return JobSettings.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_problem(error)}") from None


@checked
def make_images(
    content: str | Path | Mapping[str, Any] | ImageSettings, overrides: Iterable[str] = ()
) -> ImageSettings:
    """Validate what a job says of its images: a source as a text, or a mapping of settings.

    Parameters
    ----------
    content
        The text, or a path; or the mapping.
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
    if is_path_like(content):
        options = options_of(cast(Path, content))
        content = {"source": content} | ({"storage_options": options} if options else {})
    settings = dict(require_mapping(content, "images"))
    settings = with_overrides(settings, changes)
    refuse_unknown(settings, ImageSettings, "images", "")
    try:
        return ImageSettings.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"images: {first_problem(error)}") from None


def require_mapping(value: object, where: str) -> Mapping[str, Any]:
    """Return settings that are given as a mapping, or raise `ConfigError`."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {describe(value)}, expected a mapping of settings")
    return value


@checked
def load_images(path: Path | str, overrides: Iterable[str] = ()) -> ImageSettings:
    """Read the images of a job file; overrides are keys of its `images`.

    Raises
    ------
    ConfigError
        Where the file cannot be read, or holds unknown keys or wrong values.
    """
    return load_job(path, [f"images.{text}" for text in overrides]).images
