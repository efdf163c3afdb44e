"""The sections of the page, each from what a run has written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.core.errors import PixsimError, RemoteError
from pipeline.core.schema import CLASS, CLASS_CODE, COUNT, PROTOTYPE, SPREAD
from pipeline.report import nearest_images, page_charts
from pipeline.report import page_content as say
from pipeline.report.class_order import confusion_order
from pipeline.report.look import MAX_NAMES, one_line
from pipeline.report.opened import Run
from pipeline.report.page_content import Findings
from pipeline.report.pictures import strip, thumbnail
from pipeline.report.shown_samples import (
    Key,
    NearImage,
    SampleReader,
    read_distances,
    read_neighbours,
)
from pipeline.storage.tables import part_name

EACH = 8  # images of a class in the grid of samples
_GROUPS = 8  # disagreements that are shown, of each kind at most
_NEAR = 48  # pixels of the longer side of a nearest image, at most


def part_of(name: str) -> Markup:
    source, _, _ = make_environment().loader.get_source(make_environment(), name)  # type: ignore[union-attr]
    return Markup(source)  # noqa: S704 - a file of this package


class Page:
    """Gathers what a page shows.

    Parameters
    ----------
    run, findings
        The run, and what it has written.
    images, missing
        Its image set, or None and why it cannot be shown.
    """

    def __init__(
        self, run: Run, findings: Findings, images: SampleReader | None, missing: str
    ) -> None:
        self._path, self._findings, self._images, self._missing = (
            run.path, findings, images, missing,
        )  # fmt: skip
        self._names = findings.names
        self._prototypes = shown = run.stored_prototypes
        self._full_scale = float(shown.attrs["full_scale"])
        codes = shown[CLASS_CODE.name].values.tolist()
        self._positions = {code: position for position, code in enumerate(codes)}
        self._near: dict[Key, list[NearImage]] = {}
        self._anchors: dict[Key, str] = {}
        self._rows: list[dict[str, Any]] = []

    def context(self) -> dict[str, Any]:
        """Return everything that the template shows."""
        findings = self._findings
        order = confusion_order(findings.counts(findings.main))
        by_class, differing = self._chosen()
        self._near = self._read_near(_all(by_class))
        pictures, distances = self._read([*_all(by_class), *differing])
        samples = self._samples(by_class, pictures, distances)
        agreement = say.agreement(findings)
        if agreement is not None:
            agreement["groups"] = self._differing(differing, pictures, distances)
        return {
            "name": findings.content["name"],
            "asked": say.asked(findings), "answer": say.answer(findings),
            "meanings": say.explained_metrics(findings),
            "main": findings.main, "measures": findings.measures, "classes": len(self._names),
            "settings": findings.content["settings"], "finished": findings.content["finished"],
            "facts": self._facts(),
            "accuracies": say.accuracies(findings),
            "nearest": nearest_images.comparison(findings),
            "prototypes": self._gallery(),
            "confusion": self._confusion(order), "mistakes": say.mistakes(findings),
            "closest": self._closest(order),
            "samples": samples, "kinds": say.KINDS, "missing": self._missing,
            "margins": self._margins(),
            "agreement": agreement,
            "data": self._data(),
            "provenance": say.provenance(findings),
            "table": say.class_table(findings),
            "rows": self._listed(),
            "many": len(self._names) > say.MANY,
        }  # fmt: skip

    def _facts(self) -> list[tuple[str, str]]:
        findings, main = self._findings, self._findings.metrics[self._findings.main]
        return [
            *((f"right by {name}", say.percent(findings.metrics[name]["accuracy"]))
              for name in findings.measures),
            ("by guessing", say.percent(1 / len(self._names), 1 if len(self._names) < 200 else 2)),
            ("images measured", f"{main['count']:,}"),
            ("classes", f"{len(self._names):,}"),
        ]  # fmt: skip

    def _chosen(self) -> tuple[dict[int, dict[str, list[dict[str, Any]]]], list[dict[str, Any]]]:
        """Return the samples that are shown, of each class and kind; and where metrics differ."""
        highlights, main = self._findings.highlights, self._findings.main
        by_class: dict[int, dict[str, list[dict[str, Any]]]] = {
            at: {kind: [] for kind in say.KINDS} for at in self._findings.shown
        }
        for kind in say.KINDS:
            for row in say.columns_to_rows(highlights["samples"][main][kind]):
                if row["label"] in by_class:
                    by_class[row["label"]][kind].append(row)
        differing = []
        if highlights["agreement"] is not None:
            differing = say.columns_to_rows(highlights["agreement"]["samples"])
        return by_class, differing

    def _read_near(self, rows: Iterable[Mapping[str, Any]]) -> dict[Key, list[NearImage]]:
        """Read which images are nearest to samples, where the run has neighbours."""
        search = nearest_images.search_of(self._findings)
        if search is None:
            return {}
        wanted = [(row["part"], (row["split"], row["sample"])) for row in rows]
        metric = nearest_images.metric_of(self._findings, search)
        content = self._findings.content
        return read_neighbours(self._path, content, wanted, metric, nearest_images.SHOWN)

    def _read(self, rows: Iterable[Mapping[str, Any]]) -> tuple[dict[Key, Any], dict[Key, Any]]:
        """Read the images of samples and of those nearest to them, and distances where there."""
        wanted = {(row["split"], row["sample"]): row["part"] for row in rows}
        distances = read_distances(
            self._path, self._findings.content, [(part, key) for key, part in wanted.items()]
        )
        if self._images is None:
            return {}, distances
        near = [image.key for images in self._near.values() for image in images]
        try:
            return self._images.images([*wanted, *near]), distances
        except RemoteError:
            raise
        except (PixsimError, OSError):
            self._images, self._missing = None, "the image set cannot be read as it was"
            return {}, distances

    def _card(
        self, row: Mapping[str, Any], pictures: Mapping[Key, Any], distances: Mapping[Key, Any],
        metric: str, index: int | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Return what is shown of one sample; `index` is that of the metric in its values."""
        key = row["split"], row["sample"]

        def value(name: str) -> Any:
            return row[name] if index is None else row[name][index]

        predicted, label = value("predicted"), row["label"]
        known = {predicted: value("distance"), label: value("label_distance")}
        if key in distances:
            mine = distances[key][self._findings.measures.index(metric)]
            near = np.argsort(mine, kind="stable")[: say.NEAREST].tolist()
            known = {at: float(mine[at]) for at in [*near, label] if not np.isnan(mine[at])}
        longest = max((d for d in known.values() if d is not None), default=1.0) or 1.0
        ranked = sorted(known.items(), key=lambda pair: pair[1] if pair[1] is not None else 2.0)
        bars = [
            {
                "name": self._names[at], "distance": distance, "width": distance / longest,
                "kind": "right" if at == label else "wrong" if at == predicted else "",
            }
            for at, distance in ranked if distance is not None
        ]  # fmt: skip
        picture = pictures.get(key)
        return {
            "key": key, "anchor": self._anchor(row, value), "bars": bars,
            "label": self._names[label], "predicted": self._names[predicted],
            "right": label == predicted, "margin": value("margin"),
            "picture": None if picture is None else thumbnail(picture, self._full_scale),
            "nearest": [] if index is not None else self._nearest(key, label, pictures),
        }  # fmt: skip

    def _nearest(self, key: Key, label: int, pictures: Mapping[Key, Any]) -> list[dict[str, Any]]:
        """Return what is shown of the nearest images of a sample, which has this label."""
        return [
            {
                "key": near.key, "name": self._names[self._positions[near.label]],
                "distance": near.distance,
                "kind": "right" if self._positions[near.label] == label else "wrong",
                "picture": None if near.key not in pictures
                else thumbnail(pictures[near.key], self._full_scale, _NEAR),
            }
            for near in self._near.get(key, [])
        ]  # fmt: skip

    def _anchor(self, row: Mapping[str, Any], value: Any) -> str:
        """Note a sample for the table at the end, once; return the name of its row there."""
        key = row["split"], row["sample"]
        if key not in self._anchors:
            self._anchors[key] = f"s{len(self._anchors)}"
            self._rows.append({
                "anchor": self._anchors[key], "key": key, "label": self._names[row["label"]],
                "predicted": self._names[value("predicted")], "distance": value("distance"),
                "margin": value("margin"), "part": part_name(row["part"]), "row": row["row"],
            })  # fmt: skip
        return self._anchors[key]

    def _samples(
        self, by_class: Mapping[int, Mapping[str, Any]], pictures: Mapping[Key, Any],
        distances: Mapping[Key, Any],
    ) -> list[dict[str, Any]]:  # fmt: skip
        main = self._findings.main
        return [
            {
                "name": self._names[at], "accuracy": self._findings.accuracy(self._names[at], main),
                "kinds": {
                    kind: [self._card(row, pictures, distances, main) for row in rows]
                    for kind, rows in kinds.items()
                },
            }
            for at, kinds in by_class.items()
        ]  # fmt: skip

    def _differing(
        self, rows: Iterable[Mapping[str, Any]], pictures: Mapping[Key, Any],
        distances: Mapping[Key, Any],
    ) -> list[tuple[str, list[Any]]]:  # fmt: skip
        """Return pairs of cards, by both metrics, of what only one of them has right."""
        groups: dict[str, list[Any]] = {name: [] for name in self._findings.measures}
        for row in rows:
            cards = [
                self._card(row, pictures, distances, metric, index)
                for index, metric in enumerate(self._findings.measures)
            ]
            right = self._findings.measures[0 if cards[0]["right"] else 1]
            if len(groups[right]) < _GROUPS:
                groups[right].append(cards)
        return list(groups.items())

    def _listed(self) -> list[dict[str, Any]]:
        """Return the rows of the table of shown samples, with where each came from."""
        sources = self._images.sources(self._anchors) if self._images is not None else {}
        return [row | {"source": sources.get(row["key"], "")} for row in self._rows]

    def _gallery(self) -> list[dict[str, Any]]:
        """Return prototypes and how much pixels vary, of the classes that are shown."""
        chosen = self._findings.shown
        part = self._prototypes.isel({CLASS: chosen})
        means, spreads = part[PROTOTYPE.name].values, part[SPREAD.name].values
        widest = float(np.nanmax(spreads, initial=0.0)) or 1.0
        return [
            {
                "name": self._names[at],
                "count": int(part[COUNT.name].values[index]),
                "mean": thumbnail(means[index], self._full_scale),
                "spread": thumbnail(spreads[index], widest),
            }
            for index, at in enumerate(chosen)
        ]

    def _confusion(self, order: list[int]) -> dict[str, Any]:
        findings = self._findings
        drawn = page_charts.confusion(findings.counts(findings.main), self._names, order)
        return drawn | {
            "description": f"Heat map of {len(self._names):,} labels against predicted classes by "
            f"{findings.main}; the most frequent mistakes are in the table beside it",
        }

    def _closest(self, order: list[int]) -> dict[str, Any]:
        known, findings = say.closest(self._findings), self._findings
        known["chart"] = None
        wanted = sorted({at for pair in known["pairs"] for at in pair["positions"]})
        images = self._prototypes[PROTOTYPE.name].isel({CLASS: wanted}).values
        small = {
            at: thumbnail(image, self._full_scale) for at, image in zip(wanted, images, strict=True)
        }
        for pair in known["pairs"]:
            pair["pictures"] = [small[at] for at in pair["positions"]]
        matrix = (
            None if known["skipped"] else findings.highlights["prototypes"][findings.main]["matrix"]
        )
        if matrix is not None and 2 < len(matrix) <= MAX_NAMES:
            values = np.array(matrix, np.float64)
            known["chart"] = page_charts.class_distances(values, self._names, order) | {
                "description": f"Heat map of the distances between the prototypes of {len(matrix)} "
                f"classes by {findings.main}; the closest pairs are in the table beside it",
            }
        return known

    def _margins(self) -> dict[str, Any] | None:
        known = say.margins(self._findings)
        if known is not None:
            edges, right, wrong = known["edges"], known["right"], known["wrong"]
            known["chart"] = page_charts.margins(edges, right, wrong) | {
                "description": f"Distribution of margins by {self._findings.main}, right against "
                f"wrong: {int(right.sum()):,} right and {int(wrong.sum()):,} wrong images",
            }
        return known

    def _data(self) -> dict[str, Any]:
        """Return how the image set looks: counts, samples, what was left out."""
        if self._images is None:
            return {"there": False}
        content = self._images.content
        names, splits = content["class_names"], content["splits"]
        codes = [names.index(self._names[at]) for at in self._findings.shown]
        fit = self._findings.content["settings"]["fit"]
        strips = []
        for code, images in self._images.first(fit, codes, EACH).items():
            if images:
                address, width, height = strip(images, self._full_scale)
                strips.append({
                    "name": names[code], "count": len(images), "address": address,
                    "width": width, "height": height,
                })  # fmt: skip
        largest = max(split["labels"][code] for split in splits.values() for code in codes) or 1
        return {
            "there": True, "fit": fit, "strips": strips,
            "splits": [
                {
                    "name": name, "count": split["count"], "unlabelled": split["unlabelled"],
                    "shape": " x ".join(map(str, split["shape"])), "dtype": split["dtype"],
                    "least": min(split["labels"]), "most": max(split["labels"]),
                }
                for name, split in splits.items()
            ],
            "counts": [
                (names[code], [(name, split["labels"][code], split["labels"][code] / largest)
                               for name, split in splits.items()])
                for code in codes
            ],
            "left_out": content.get("samples", {}).get("left_out", {}),
            "duplicates": content.get("duplicates", 0),
        }  # fmt: skip


def _all(by_class: Mapping[int, Mapping[str, list[Any]]]) -> list[dict[str, Any]]:
    return [row for kinds in by_class.values() for rows in kinds.values() for row in rows]


@lru_cache(maxsize=1)
def make_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "percent": say.percent, "number": say.number, "line": one_line, "full": say.written_in_full,
        "plain": lambda value: f"{value:,}", "points": nearest_images.points,
    }  # fmt: skip
    return environment
