"""What a job or an audit says of its search for the nearest images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from pipeline.config.settings import Names, Settings, one_or_many, unique

Metrics = Annotated[
    tuple[Literal["l1", "l2"], ...],
    Field(min_length=1),
    BeforeValidator(one_or_many),
    AfterValidator(unique),
]


class NeighbourSettings(Settings):
    """Which images are searched for the nearest of each measured image."""

    k: int = Field(default=10, ge=1, le=10**6, strict=True)
    """How many of the nearest are written."""
    among: Annotated[Names, BeforeValidator(one_or_many)] | None = None
    """The split or splits that are searched, in them the images of the job's classes; default:
    `fit`. An image that is in one of them itself is left out of its own.
    """
    metrics: Metrics | None = None
    """`l1`, `l2` or both; default: those of the job."""


Variants = Annotated[
    tuple[Literal["mirror"], ...], BeforeValidator(one_or_many), AfterValidator(unique)
]
Score = Annotated[float, Field(ge=0, le=1)]


class AuditChecks(Settings):
    """What is looked for, and from which score on it is a finding."""

    k: int = Field(default=10, ge=2, le=1000, strict=True)
    """How many of the nearest images of each image are looked at; groups of more near copies than
    that may be missed.
    """
    metric: Literal["l1", "l2"] = "l1"
    """`l1` or `l2`."""
    variants: Variants = ()
    """`mirror`: every image is compared with all others as its mirror image too; default: none."""
    near: Annotated[Score, Field(ge=0.1)] | None = None  # lower ones are not all listed
    """The score of a pair, 0.1 to 1, from which its images count as nearly the same; default:
    chosen from the image set.
    """
    labels: Score | None = None
    """The score of a label, 0 to 1, from which it counts as wrong; default: 0.9."""
    outliers: Score | None = None
    """The score of an image, 0 to 1, from which it counts as far from all others; default: chosen
    from the image set.
    """
    keep: Annotated[Names, BeforeValidator(one_or_many)] | None = None
    """Splits, the first to keep its images first: of images that are (nearly) the same one is kept,
    in the first of these splits that has any; default: all but the fitted one, then that.
    """
