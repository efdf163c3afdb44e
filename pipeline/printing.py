"""What the command line prints of stores, plans and runs: each as lines and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.core.errors import format_bytes, listed, printable
from pipeline.output import Bytes, Part, Score, Table, as_text, plain

MAX_ROWS = 20


def count_of(count: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def of_folder(content: Mapping[str, Any]) -> Iterator[Part]:
    """Return what a store, a run or an audit holds."""
    if content["kind"] == "pixsim run":
        yield from of_run(content)
        yield from _of_arrays(content)
    else:
        yield from (of_audit if content["kind"] == "pixsim audit" else of_images)(content)


def of_images(content: Mapping[str, Any]) -> Iterator[Part]:
    yield f"image set {content['path']}"
    yield f"digest    sha256:{content['digest']}"
    splits = content["splits"]
    keys = ("count", "shape", "dtype", "chunk", "shard", "bytes", "stored_bytes")
    yield Table(
        "splits",
        ["split", "images", "shape", "dtype", "chunk", "shard", "bytes", "on disk"],
        [[name, *(split[key] for key in keys)] for name, split in splits.items()],
    )
    rows = [
        [name, *(split["classes"][name] for split in splits.values())]
        for name in content["class_names"]
    ]
    unlabelled = [split["unlabelled"] for split in splits.values()]
    rest = [["(no label)", *unlabelled]] if any(unlabelled) else []
    header = ["class", *splits]
    yield Table("classes", header, [*rows[:MAX_ROWS], *rest], forms=("text",))
    yield Table("classes", header, [*rows, *rest], forms=("csv",))
    yield from _how_many_more(content["class_names"])
    left_out = content["samples"].get("left_out", {})
    if left_out:
        kinds = ", ".join(f"{count:,} {status}" for status, count in left_out.items())
        yield f"left out  {sum(left_out.values()):,} samples ({kinds}): see samples.parquet"
    if content["duplicates"]:
        yield f"copies    {content['duplicates']:,} samples of others: see duplicates.parquet"


def of_plan(plan: Mapping[str, Any]) -> Iterator[Part]:
    shape = " x ".join(map(str, plan["shape"]))
    yield f"plan of {plan['name']}: {plan['classes']:,} classes, images {shape} {plan['dtype']}"
    made = "" if plan["ingested"] else ", not ingested yet: the run begins with that"
    yield f"images {plan['images']}{made}"
    if plan["choice"]:
        yield plan["choice"]
    keys = ("name", "images", "partitions", "tasks")
    rows = [[*(part[key] for key in keys), Bytes(part["bytes"])] for part in plan["passes"]]
    yield Table("passes", ["pass", "images", "partitions", "tasks", "pixels read"], rows)
    yield from _excluded(plan)
    if plan["tiling"] is not None:
        yield plan["tiling"]
    yield from _left_out(plan["leave_one_out"])
    workers, memory = plan["workers"], plan["memory"]
    tasks = count_of(workers["tasks"], "task") + " at once"
    where = f"{tasks} in this process"
    if workers["processes"]:
        where = f"{tasks} in each of {count_of(workers['processes'], 'worker process')}"
    yield f"{where}, {count_of(workers['threads'], 'thread')} a task"
    parts = (
        f"prototypes {format_bytes(memory['fit'])}, distances {format_bytes(memory['evaluate'])}"
    )
    if memory["search"]:
        parts += f", neighbours {format_bytes(memory['search'])}"
    limit = format_bytes(memory["limit"])
    yield f"peak memory {format_bytes(memory['worker'])} a process ({parts}) of {limit}"
    client = f", {format_bytes(memory['client'])} of it the client" if memory["client"] else ""
    yield f"peak memory {format_bytes(memory['total'])} in all{client}"
    device = plan["device"]
    of_it = f"{format_bytes(device['needed'])} a process of {{}}" if device["memory"] else ""
    of_it = f", {of_it.format(format_bytes(device['memory']))}" if of_it else ""
    yield f"computes on {device['description']}{of_it}"
    yield f"arithmetic {plan['arithmetic']['reason']}"
    if plan["pairs"]:
        yield f"{plan['pairs']:,} pairs of images to compare, fewer where sketches tell them apart"
    files = [
        [file["path"], file["files"], None if file["bytes"] is None else Bytes(file["bytes"])]
        for file in plan["files"]
    ]
    title = f"written to {plan['output']}"
    yield Table("files", ["path", "files", "before compression"], files, title)


def _left_out(split: str | None) -> Iterator[Part]:
    if split is not None:
        yield f"each image of '{split}' is measured from its class without it (leave_one_out)"


def of_run(run: Mapping[str, Any]) -> Iterator[Part]:
    yield f"run {run['name']} in {run['path']}"
    metrics = run["metrics"]
    every = list(metrics.values())
    rows: list[list[Any]] = [["all", None, *(values["accuracy"] for values in every)]]
    rows.append(["balanced", None, *(values["balanced_accuracy"] for values in every)])
    for name in run["classes"]:
        shares = [values["per_class"][name]["accuracy"] for values in every]
        rows.append([name, every[0]["per_class"][name]["count"], *shares])
    shown = [
        [name if count is None else f"{name} ({count:,})", *shares]
        for name, count, *shares in rows[: MAX_ROWS + 2]
    ]
    yield Table("accuracy", ["accuracy", *metrics], shown, forms=("text",))
    yield Table("accuracy", ["class", "images", *metrics], rows, forms=("csv",))
    yield from _how_many_more(run["classes"])
    if every[0]["accuracy"] is None:
        yield "none of the measured images has a label: there are predictions, and no accuracy"
    yield from _without_meaning(run, {row[0]: row[1] for row in rows[2:]})
    yield from _left_out(run["leave_one_out"])
    if run["neighbours"]:
        yield _votes(run["neighbours"])
    yield from _excluded(run)
    yield f"digest sha256:{run['digests']['run']}"


def _without_meaning(run: Mapping[str, Any], counts: Mapping[str, int]) -> Iterator[Part]:
    """Return why accuracies say nothing: of one class, of classes of one image each."""
    if len(counts) == 1:
        yield "there is one class, which is all that can be predicted: its accuracy says nothing"
    alone = [printable(name) for name, count in counts.items() if count == 1]
    if alone and [run["leave_one_out"]] == run["evaluate"]:
        yield (
            f"measured without itself the only image of a class can only be wrong: "
            f"{listed(alone)} {'has' if len(alone) == 1 else 'have'} one image"
        )


def of_audit(audit: Mapping[str, Any]) -> Iterator[Part]:
    summary = audit["summary"]
    yield f"audit of {audit['images']} in {audit['path']}"
    rows = [
        [place, found["images"], found["pairs"], Score(found["threshold"])]
        for place, found in summary["between"].items()
    ]
    header = ["between", "images", "pairs", "score from"]
    yield Table("pairs", header, rows, "(nearly) the same images")
    copies = summary["copies"]
    yield (
        f"copies    {copies['images']:,} images in {count_of(copies['groups'], 'group')}, "
        f"{copies['exact_pairs']:,} of {count_of(copies['pairs'], 'pair')} exact; "
        f"to remove so that one of each is left: {copies['copies_to_remove']:,}"
    )
    for what, name in (("labels", "labels that do not fit"), ("outliers", "images far from all")):
        found = summary[what]
        yield f"{what:9} {found['images']:,} {name}, score from {found['threshold']:.3f}"
    reasons = list(dict.fromkeys(reason for split in summary["keep"].values() for reason in split))
    kept = [
        [name, *(split.get(reason, 0) for reason in reasons)]
        for name, split in summary["keep"].items()
    ]
    yield Table("keep", ["split", *reasons], kept)
    yield f"digest sha256:{audit['digests']['audit']}"


def _excluded(content: Mapping[str, Any]) -> Iterator[Part]:
    """Return how many samples are left out of each split, and why."""
    for split, known in content.get("excluded", {}).items():
        kinds = ", ".join(f"{count:,} {printable(why)}" for why, count in known["reasons"].items())
        yield f"left out  {count_of(known['count'], 'sample')} of '{split}' ({kinds})"
    held = content.get("holdout")
    if held:
        of = f"{held['held_out'] + held['fitted']:,} of '{held['split']}', the others fitted"
        yield f"held out  {held['held_out']:,} of {of}"


def _votes(neighbours: Mapping[str, Any]) -> Table:
    """Return the accuracies by the votes of the nearest images."""
    first = next(iter(neighbours.values()))
    rows = [
        [votes, *(by_votes[votes]["accuracy"] for by_votes in neighbours.values())]
        for votes in first
    ]
    return Table("votes", ["votes", *neighbours], rows, "accuracy by votes of the nearest")


def _of_arrays(run: Mapping[str, Any]) -> Iterator[Part]:
    measured = ", ".join(f"'{split}'" for split in run["evaluate"])
    yield f"images {run['images']}, prototypes from '{run['fit']}', measured {measured}"
    rows = [
        [
            name,
            ", ".join(f"{dim}: {size:,}" for dim, size in array["sizes"].items()),
            array["dtype"],
            array["chunk"],
            array["bytes"],
        ]
        for name, array in run["arrays"].items()
    ]
    yield Table("arrays", ["array", "sizes", "dtype", "chunk", "bytes"], rows)
    yield f"{run['rows']:,} rows of predictions, {run['stored_bytes']:,} bytes on disk"
    yield f"arithmetic {run['arithmetic']}; {run['seconds']:.1f} s on {run['executor']}"


def of_comparison(compared: Any) -> Iterator[Part]:
    """Return runs side by side, each beside the first."""
    numbers = [str(at) for at in range(1, len(compared.names) + 1)]
    folders = zip(numbers, compared.names, compared.paths, strict=True)
    yield Table("runs", ["run", "name", "folder"], list(map(list, folders)))
    yield from compared.remarks
    groups: dict[str, list[Any]] = {}
    for row in compared.rows:
        if not row.votes:
            groups.setdefault(f"'{row.split}' by {row.metric}", []).append(row)
        elif row.name == "all" and not row.is_class:
            groups.setdefault(f"'{row.split}' by votes of the nearest", []).append(row)
    for title, rows_of in groups.items():
        yield from _compared(title, rows_of)
    header = ["split", "metric", "votes", "name", *(f"run {number}" for number in numbers)]
    rows = [
        [row.split, row.metric, row.votes or None, row.name, *row.accuracies]
        for row in compared.rows
    ]
    yield Table("accuracy", header, rows, forms=("csv",))
    differing = [[key, *texts] for key, texts in compared.settings.items()]
    if differing:
        yield Table("settings", ["differs", *(f"run {n}" for n in numbers)], differing)
    for at, excluded in enumerate(compared.excluded, 1):
        if excluded:
            yield f"run {at}:"
            yield from _excluded({"excluded": excluded})


def _compared(title: str, rows: Sequence[Any]) -> Iterator[Part]:
    """Return some accuracies as text; of many classes those that differ most."""
    whole, classes = ([row for row in rows if row.is_class == of] for of in (False, True))
    shown = classes
    if len(classes) > MAX_ROWS:
        most = {id(row): max(abs(value or 0) for value in row.differences) for row in classes}
        shown = sorted(classes, key=lambda row: -most[id(row)])[:MAX_ROWS]
    others = range(1, len(rows[0].accuracies))
    cells = [
        [_title(row), row.accuracies[0], *(_beside(row, at) for at in others)]
        for row in [*whole, *shown]
    ]
    header = [title, "1", *(f"{at + 1}, less 1" for at in others)]
    yield Table("accuracy", header, cells, forms=("text",))
    if len(shown) < len(classes):
        yield f"... and {len(classes) - len(shown)} classes more, which differ less"


def _title(row: Any) -> str:
    return f"{row.votes} by {row.metric}" if row.votes else str(row.name)


def _beside(row: Any, at: int) -> str:
    difference = row.differences[at]
    return as_text(row.accuracies[at]) + ("" if difference is None else f" {difference:+.4f}")


def _how_many_more(names: Sequence[str]) -> Iterator[Part]:
    if len(names) > MAX_ROWS:
        yield f"... and {len(names) - MAX_ROWS} classes more"


def explained(explanation: Any, *, with_image: bool) -> dict[str, Any]:
    """Return what is known of an explained image, without the pixels of others."""
    content = plain(explanation)
    for name in ["prototypes", *([] if with_image else ["image"])]:
        del content[name]
    for images in content["neighbours"].values():
        for near in images:
            del near["image"]
    return dict(content)


def of_explanation(explanation: Any) -> Iterator[Part]:
    name = explanation.label_name
    label = f"labelled {printable(name)}" if name else "without label"
    yield f"{explanation.split} image {explanation.sample}, {label}"
    if explanation.is_outside:
        classes = listed(map(printable, explanation.class_names))
        yield f"that is none of the run's classes ({classes}): it counts in no accuracy of the run"
    if explanation.left_out:
        yield f"measured from {printable(name)} without it, as in the run (leave_one_out)"
    rows = [
        [name, *(float(value) for value in explanation.distances[:, column])]
        for column, name in enumerate(explanation.class_names)
    ]
    yield Table("distances", ["class", *explanation.metrics], rows)
    for metric, name in explanation.predicted.items():
        yield f"nearest by {metric}: {printable(name)}"
    if not explanation.neighbours:
        return
    nearest = [
        [metric, rank, near.split, str(near.sample), near.label_name, near.distance]
        for metric, images in explanation.neighbours.items()
        for rank, near in enumerate(images, start=1)
    ]
    if nearest:
        header = ["nearest by", "rank", "split", "sample", "class", "distance"]
        yield Table("nearest", header, nearest)
    else:
        yield "there is no other image of the run's classes to compare it with"


def datasets(known: Sequence[tuple[Any, str]]) -> list[dict[str, Any]]:
    """Return the data sets of the catalog, and where the files of each are."""
    return [{**plain(entry), "files": files} for entry, files in known]


def of_datasets(known: Sequence[tuple[Any, str]]) -> Iterator[Part]:
    rows = [[entry.name, entry.image, entry.licence, files, entry.title] for entry, files in known]
    yield Table("datasets", ["name", "image", "licence", "files", "what"], rows)


def of_digests(digests: Mapping[str, str | None]) -> Iterator[Part]:
    texts = {name: value and f"sha256:{value}" for name, value in digests.items()}
    for name, text in texts.items():
        yield f"{name:12} {text or 'not written'}"
    rows = [[name, text] for name, text in texts.items()]
    yield Table("digests", ["of", "digest"], rows, forms=("csv",))


def of_verified(content: Mapping[str, Any]) -> Iterator[Part]:
    rows = [[damage.file, damage.reason] for damage in content["damaged"]]
    title = "mended" if content["repaired"] else "damaged"
    if not rows:
        yield f"{content['path']} is whole: every file is as it was written"
    forms = ("text", "csv") if rows else ("csv",)
    yield Table("damaged", ["file", "what is wrong"], rows, title, forms=forms)
