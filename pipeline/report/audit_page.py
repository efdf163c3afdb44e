"""The page of an audit: one file that can be mailed, and shows the worst first.

It reads what the audit has written and the few images that it shows. Whatever the image set is like
there are only so many of them, and of each a small picture is kept: the page stays small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.core.errors import PixsimError, RemoteError
from pipeline.core.exact import Float64Array
from pipeline.core.paths import locate, options_of
from pipeline.report import audit_content as say
from pipeline.report import audit_rows, plot_style
from pipeline.report.audit_charts import distance_charts, score_charts
from pipeline.report.opened_audit import Audit
from pipeline.report.page_sections import make_environment, part_of
from pipeline.report.pictures import reduced, signed_picture, thumbnail
from pipeline.report.shown_samples import Key, NearImage, SampleReader, open_image_set
from pipeline.storage import audit_files, manifest
from pipeline.storage.atomic import read_json, write_text

DIFFERENCE = 0.5  # of full scale, which has the strongest colour
_READ_BYTES = 2**27  # of images that are held at once as they are
_TABLES = (
    audit_files.PAIRS, audit_files.GROUPS, audit_files.LABELS, audit_files.OUTLIERS,
    audit_files.KEEP,
)  # fmt: skip


def add_page(audit: Audit, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write the page into an audit's locked folder; return its manifest with the page in.

    Parameters
    ----------
    audit
        The audit; its manifest need not be there yet.
    content
        What the manifest says, or will say.
    """
    file = audit.path / audit_files.PAGE_FILE
    write_text(file, render_audit(audit, content))
    hashes = {**content["files"], audit_files.PAGE_FILE: manifest.file_hash(file)}
    return {**content, "files": hashes}


def render_audit(audit: Audit, content: Mapping[str, Any] | None = None) -> str:
    """Return the page of an audit.

    Parameters
    ----------
    audit
        The audit.
    content
        Its manifest, where that is not written yet.

    Raises
    ------
    DamagedError
        Where something that the page shows was changed.
    """
    known = dict(audit.manifest if content is None else content)
    files = [audit_files.AUDIT_FILE, *map(audit_files.table_file, _TABLES)]
    manifest.require_files(audit.path, known, files)
    summary = dict(read_json(audit.path / audit_files.AUDIT_FILE))
    path = locate(known["images"]["path"], audit.storage_options or options_of(audit.path))
    images, missing = open_image_set(path, known["images"]["digest"])
    page = AuditPage(audit, known, summary, ShownImages(images, missing))
    template = make_environment().get_template("audit.html.j2")
    return template.render(**page.context(), style=part_of("report.css") + part_of("audit.css"))


@dataclass
class ShownImages:
    """The images that a page shows, each reduced to a small one.

    Attributes
    ----------
    reader, missing
        The image set, or None and why it cannot be shown.
    """

    reader: SampleReader | None
    missing: str
    _small: dict[Key, Float64Array] = field(default_factory=dict)

    def read(self, wanted: Iterable[Key]) -> None:
        """Read images, few enough at once to be held whole; none where one cannot be read."""
        if self.reader is None:
            return
        content = self.reader.content
        keys = sorted(set(wanted))
        try:
            while keys:
                like = content["splits"][keys[0][0]]
                size = math.prod(like["shape"]) * np.dtype(like["dtype"]).itemsize
                count = max(1, _READ_BYTES // size)
                for key, image in self.reader.images(keys[:count]).items():
                    self._small[key] = reduced(image, float(content["full_scale"]))
                keys = keys[count:]
        except RemoteError:
            raise
        except (PixsimError, OSError):
            self.reader, self.missing = None, "the image set cannot be read as it was"
            self._small.clear()

    def picture(self, key: Key) -> str | None:
        """Return the address of a small picture, None where there is none."""
        return None if key not in self._small else thumbnail(self._small[key], 1.0)

    def difference(self, one: Key, other: Key, mirrored: bool) -> str | None:
        """Return the address of a picture of the difference of two images."""
        if one not in self._small or other not in self._small:
            return None
        first = self._small[one][:, ::-1] if mirrored else self._small[one]
        return signed_picture(first - self._small[other], DIFFERENCE, plot_style.DIVERGING)


class AuditPage:
    """Gathers what the page of an audit shows.

    Parameters
    ----------
    audit, content, summary
        The audit, its manifest, and its `audit.json`.
    images
        Those that are shown.
    """

    def __init__(
        self,
        audit: Audit,
        content: Mapping[str, Any],
        summary: Mapping[str, Any],
        images: ShownImages,
    ) -> None:
        self._path, self._content, self._summary, self._images = (
            audit.path, content, summary, images,
        )  # fmt: skip

    def context(self) -> dict[str, Any]:
        """Return everything that the template shows."""
        summary, path = self._summary, self._path
        sides = say.sides_of(summary)
        leaks = [each for each in sides if each.leak]
        pairs = {name: audit_rows.read_pairs(path, leaks=name == "leaks")
                 for name in ("leaks", "copies")}  # fmt: skip
        groups = audit_rows.read_groups(path)
        labels, outliers = audit_rows.read_labels(path), audit_rows.read_outliers(path)
        suspects = [row for rows in labels for row in rows]
        splits, metric = summary["splits"], summary["checks"]["metric"]
        votes = audit_rows.read_votes(path, self._content, splits, metric, suspects)
        self._images.read(_keys_of(pairs, groups, [*suspects, *outliers[0], *outliers[1]], votes))
        bad = audit_rows.unreadable_by_split(path) if say.unreadable(summary) else {}
        return {
            "name": self._content["name"], "finished": self._content["finished"],
            "total": sum(splits.values()), "splits": splits, "labelled": self._labelled(),
            "answer": say.answer(summary), "facts": say.facts(summary),
            "counted": say.counted(summary), "meanings": say.meanings(summary), "metric": metric,
            "missing": self._images.missing,
            "leaks": self._pairs(leaks, pairs["leaks"]) if leaks else None,
            "copies": self._pairs([each for each in sides if not each.leak], pairs["copies"]),
            "groups": {kind: list(map(self._group, known)) for kind, known in groups.items()},
            "counts": summary["copies"], "first": say.kept_first(summary)[0],
            "suspects": [[self._suspect(row, votes) for row in rows] for rows in labels],
            "labels": summary["labels"], "outliers": summary["outliers"],
            "far": [[row | self._card(row) for row in rows] for rows in outliers],
            "scores": score_charts(sides),
            "distances": distance_charts(sides, list(splits), metric),
            "sides": say.compared(sides),
            "kept": say.kept(summary, bad), "reasons": say.REASONS,
            "command": say.command(path), "provenance": say.provenance(self._content, summary),
        }  # fmt: skip

    def _labelled(self) -> bool:
        """Tell whether any image has a label, as far as that is known."""
        if self._images.reader is None:
            return True
        splits = self._images.reader.content["splits"].values()
        return any(split["count"] > split["unlabelled"] for split in splits)

    def _card(self, row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """Return what is shown of one image of a row of a table."""
        key = _key(row, prefix)
        return {
            "key": key, "picture": self._images.picture(key), "label": row[f"{prefix}label_name"],
            "source": row[f"{prefix}source"] or "",
        }  # fmt: skip

    def _pairs(
        self, sides: list[say.Between], rows: tuple[audit_rows.Rows, audit_rows.Rows]
    ) -> dict[str, Any]:
        """Return what is shown of the pairs between some splits."""
        return {
            "rows": say.compared(sides), "count": sum(each.known["pairs"] for each in sides),
            "pairs": [[self._pair(row) for row in each] for each in rows],
        }  # fmt: skip

    def _pair(self, row: Mapping[str, Any]) -> dict[str, Any]:
        labels = row["label_name"], row["other_label_name"]
        one, other = _key(row), _key(row, "other_")
        return {
            "images": [self._card(row), self._card(row, "other_")],
            "difference": self._images.difference(one, other, row["mirrored"]),
            "conflict": None not in labels and labels[0] != labels[1],
            "distance": row["distance"], "score": row["score"], "mirrored": row["mirrored"],
            "exact": row["kind"] == "exact",
        }  # fmt: skip

    def _group(self, known: Mapping[str, Any]) -> dict[str, Any]:
        images = [
            self._card(row) | {"representative": row["representative"]} for row in known["rows"]
        ]
        return {**known, "images": images}

    def _suspect(
        self, row: Mapping[str, Any], votes: Mapping[Key, list[NearImage]]
    ) -> dict[str, Any]:
        near = [
            {"key": near.key, "distance": near.distance, "picture": self._images.picture(near.key)}
            for near in votes.get(_key(row), [])
        ]
        return self._card(row) | {
            "suggested": row["suggested_name"], "score": row["score"], "near": near,
            "votes": row["votes"], "suggested_votes": row["suggested_votes"],
        }  # fmt: skip


def _key(row: Mapping[str, Any], prefix: str = "") -> Key:
    return row[f"{prefix}split"], row[f"{prefix}sample"]


def _keys_of(
    pairs: Mapping[str, tuple[audit_rows.Rows, audit_rows.Rows]],
    groups: Mapping[str, list[dict[str, Any]]],
    single: audit_rows.Rows,
    votes: Mapping[Key, list[NearImage]],
) -> list[Key]:
    """Return which images are shown."""
    both = [row for each in pairs.values() for rows in each for row in rows]
    members = [row for kind in groups.values() for group in kind for row in group["rows"]]
    return [
        *(_key(row, prefix) for row in both for prefix in ("", "other_")),
        *map(_key, [*members, *single]), *(near.key for each in votes.values() for near in each),
    ]  # fmt: skip
