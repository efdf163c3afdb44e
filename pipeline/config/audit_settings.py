"""An audit of an image set: what it looks for, in which images, where to.

It is made of a source, a store, or the images of a job file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator, PrivateAttr, ValidationError

from pipeline.config.cluster_settings import ClusterSettings, make_cluster
from pipeline.config.image_settings import ImageSettings
from pipeline.config.job_settings import (
    DEVICE_PATTERN,
    JobSettings,
    as_path,
    make_images,
    require_mapping,
)
from pipeline.config.overrides import with_overrides
from pipeline.config.search_settings import AuditChecks
from pipeline.config.yaml_files import first_problem, refuse_unknown
from pipeline.core.arguments import checked
from pipeline.core.errors import ConfigError, StoreError
from pipeline.core.paths import shown


class AuditSettings(AuditChecks):
    """One audit: of which images, where it runs, where it is written."""

    name: str = Field(min_length=1)
    """Its name; default: that of the images."""
    images: ImageSettings
    """As for a job."""
    device: str = Field(default="auto", pattern=DEVICE_PATTERN)
    """As for a job."""
    cluster: ClusterSettings = ClusterSettings()
    """As for a job."""
    output: Annotated[Path, PlainValidator(as_path), PlainSerializer(shown)]
    """The folder of the audit, or its URL."""
    storage_options: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)
    """As for a job."""

    @property
    def named_cluster(self) -> ClusterSettings | None:
        """The cluster that it names; nothing where it leaves that to its caller."""
        return self.cluster if "cluster" in self.model_fields_set else None

    _job: JobSettings | None = PrivateAttr(default=None)

    def keeping(self, counts: Mapping[str, int]) -> AuditSettings:
        """Return the audit with `keep` chosen, by default as of the job that it is made of.

        Parameters
        ----------
        counts
            How many labelled images each split of its image set holds.
        """
        if self._job is None or self.keep is not None:
            return self
        try:
            job = self._job.with_splits(counts)
        except StoreError:  # an audit needs no split to fit
            return self
        keep = tuple(dict.fromkeys((*job.evaluate, job.fit)))
        return self.model_copy(update={"keep": keep})

    @property
    def checks(self) -> dict[str, Any]:
        """What decides the result, in plain values."""
        return self.model_dump(mode="json", include=set(AuditChecks.model_fields))


def audit_of_job(job: JobSettings, output: Path | str | None = None) -> AuditSettings:
    """Return the audit of the images of a job: in the folder `audit` of its output, by default."""
    checks = {} if job.audit is None else job.audit.model_dump(exclude_unset=True)
    known = {
        "name": job.name,
        "images": job.images,
        "device": job.device,
        "output": job.output / "audit" if output is None else output,
        "storage_options": job.storage_options,
    }
    named = {} if job.named_cluster is None else {"cluster": job.named_cluster}
    audit = make_audit(checks | known | named)
    audit._job = job
    return audit


@checked
def make_audit(content: Mapping[str, Any], overrides: Iterable[str] = ()) -> AuditSettings:
    """Validate the settings of an audit, given as a mapping; see `AuditSettings`.

    Raises
    ------
    ConfigError
        Where keys are unknown or missing, or values wrong.
    """
    settings = with_overrides(dict(require_mapping(content, "audit")), overrides)
    refuse_unknown(settings, AuditSettings, "audit", "")
    if isinstance(settings.get("cluster"), str):
        settings["cluster"] = make_cluster(settings["cluster"])
    if "images" in settings and not isinstance(settings["images"], ImageSettings):
        settings["images"] = make_images(settings["images"])
    try:
        return AuditSettings.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"audit: {first_problem(error)}") from None
