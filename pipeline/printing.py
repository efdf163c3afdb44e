"""What the command line prints of stores, plans and runs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pipeline
from pipeline.core.errors import BadSamplesError, format_bytes, printable

MAX_ROWS = 20


def print_images(content: Mapping[str, Any]) -> None:
    print(f"image set {content['path']}")
    print(f"digest    sha256:{content['digest']}")
    header = ["split", "images", "shape", "dtype", "chunk", "shard", "bytes", "on disk"]
    rows = [
        [
            name,
            f"{split['count']:,}",
            " x ".join(map(str, split["shape"])),
            split["dtype"],
            f"{split['chunk']:,}",
            f"{split['shard']:,}",
            f"{split['bytes']:,}",
            f"{split['stored_bytes']:,}",
        ]
        for name, split in content["splits"].items()
    ]
    pipeline.print_table(header, rows)
    splits = content["splits"]
    counts = [
        [name, *(f"{split['classes'][name]:,}" for split in splits.values())]
        for name in content["class_names"][:MAX_ROWS]
    ]
    unlabelled = [f"{split['unlabelled']:,}" for split in splits.values()]
    if any(text != "0" for text in unlabelled):
        counts.append(["(no label)", *unlabelled])
    pipeline.print_table(["class", *splits], counts)
    _say_how_many_more(content["class_names"])
    left_out = content["samples"].get("left_out", {})
    if left_out:
        kinds = ", ".join(f"{count:,} {status}" for status, count in left_out.items())
        print(f"left out  {sum(left_out.values()):,} samples ({kinds}): see samples.parquet")
    if content["duplicates"]:
        print(f"copies    {content['duplicates']:,} samples of others: see duplicates.parquet")


def print_plan(plan: Mapping[str, Any]) -> None:
    shape = " x ".join(map(str, plan["shape"]))
    print(f"plan of {plan['name']}: {plan['classes']:,} classes, images {shape} {plan['dtype']}")
    made = "" if plan["ingested"] else ", not ingested yet: the run begins with that"
    print(f"images {plan['images']}{made}")
    rows = [
        [
            part["name"],
            f"{part['images']:,}",
            f"{part['partitions']:,}",
            f"{part['tasks']:,}",
            format_bytes(part["bytes"]),
        ]
        for part in plan["passes"]
    ]
    pipeline.print_table(["pass", "images", "partitions", "tasks", "pixels read"], rows)
    _print_excluded(plan)
    if plan["tiling"] is not None:
        print(plan["tiling"])
    _say_what_is_left_out(plan["leave_one_out"])
    workers, memory = plan["workers"], plan["memory"]
    tasks = count_of(workers["tasks"], "task") + " at once"
    where = f"{tasks} in this process"
    if workers["processes"]:
        where = f"{tasks} in each of {count_of(workers['processes'], 'worker process')}"
    print(f"{where}, {count_of(workers['threads'], 'thread')} a task")
    parts = (
        f"prototypes {format_bytes(memory['fit'])}, distances {format_bytes(memory['evaluate'])}"
    )
    if memory["search"]:
        parts += f", neighbours {format_bytes(memory['search'])}"
    limit = format_bytes(memory["limit"])
    print(f"peak memory {format_bytes(memory['worker'])} a process ({parts}) of {limit}")
    client = f", {format_bytes(memory['client'])} of it the client" if memory["client"] else ""
    print(f"peak memory {format_bytes(memory['total'])} in all{client}")
    device = plan["device"]
    of_it = f"{format_bytes(device['needed'])} a process of {{}}" if device["memory"] else ""
    of_it = f", {of_it.format(format_bytes(device['memory']))}" if of_it else ""
    print(f"computes on {device['description']}{of_it}")
    print(f"arithmetic {plan['arithmetic']['reason']}")
    if plan["pairs"]:
        print(f"{plan['pairs']:,} pairs of images to compare, fewer where sketches tell them apart")
    rows = [
        [
            file["path"],
            f"{file['files']:,}",
            "-" if file["bytes"] is None else format_bytes(file["bytes"]),
        ]
        for file in plan["files"]
    ]
    pipeline.print_table([f"written to {plan['output']}", "files", "before compression"], rows)


def _say_what_is_left_out(split: str | None) -> None:
    if split is not None:
        print(f"each image of '{split}' is measured from its class without it (leave_one_out)")


def count_of(count: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def print_run(run: Mapping[str, Any]) -> None:
    print(f"run {run['name']} in {run['path']}")
    metrics = run["metrics"]
    rows = [["all", *(_share(values["accuracy"]) for values in metrics.values())]]
    rows.append(["balanced", *(_share(values["balanced_accuracy"]) for values in metrics.values())])
    first = next(iter(metrics.values()))
    for name in run["classes"][:MAX_ROWS]:
        shares = [_share(values["per_class"][name]["accuracy"]) for values in metrics.values()]
        rows.append([f"{name} ({first['per_class'][name]['count']:,})", *shares])
    pipeline.print_table(["accuracy", *metrics], rows)
    _say_how_many_more(run["classes"])
    _say_what_is_left_out(run["leave_one_out"])
    if run["neighbours"]:
        _print_votes(run["neighbours"])
    _print_excluded(run)
    print(f"digest sha256:{run['digests']['run']}")


def print_audit(audit: Mapping[str, Any]) -> None:
    summary = audit["summary"]
    print(f"audit of {audit['images']} in {audit['path']}")
    rows = [
        [place, f"{found['images']:,}", f"{found['pairs']:,}", f"{found['threshold']:.3f}"]
        for place, found in summary["between"].items()
    ]
    pipeline.print_table(["(nearly) the same images", "images", "pairs", "score from"], rows)
    copies = summary["copies"]
    print(
        f"copies    {copies['images']:,} images in {count_of(copies['groups'], 'group')}, "
        f"{copies['exact_pairs']:,} of {count_of(copies['pairs'], 'pair')} exact; "
        f"to remove so that one of each is left: {copies['copies_to_remove']:,}"
    )
    for what, name in (("labels", "labels that do not fit"), ("outliers", "images far from all")):
        found = summary[what]
        print(f"{what:9} {found['images']:,} {name}, score from {found['threshold']:.3f}")
    reasons = list(dict.fromkeys(reason for split in summary["keep"].values() for reason in split))
    kept = [
        [name, *(f"{split.get(reason, 0):,}" for reason in reasons)]
        for name, split in summary["keep"].items()
    ]
    pipeline.print_table(["split", *reasons], kept)
    print(f"digest sha256:{audit['digests']['audit']}")


def _print_excluded(content: Mapping[str, Any]) -> None:
    """Print how many samples are left out of each split, and why."""
    for split, known in content.get("excluded", {}).items():
        kinds = ", ".join(f"{count:,} {printable(why)}" for why, count in known["reasons"].items())
        print(f"left out  {count_of(known['count'], 'sample')} of '{split}' ({kinds})")
    held = content.get("holdout")
    if held:
        of = f"{held['held_out'] + held['fitted']:,} of '{held['split']}', the others fitted"
        print(f"held out  {held['held_out']:,} of {of}")


def _print_votes(neighbours: Mapping[str, Any]) -> None:
    """Print the accuracies by the votes of the nearest images."""
    first = next(iter(neighbours.values()))
    rows = [
        [votes, *(_share(by_votes[votes]["accuracy"]) for by_votes in neighbours.values())]
        for votes in first
    ]
    pipeline.print_table(["accuracy by votes of the nearest", *neighbours], rows)


def print_run_content(run: Mapping[str, Any]) -> None:
    measured = ", ".join(f"'{split}'" for split in run["evaluate"])
    print(f"images {run['images']}, prototypes from '{run['fit']}', measured {measured}")
    rows = [
        [
            name,
            ", ".join(f"{dim}: {size:,}" for dim, size in array["sizes"].items()),
            array["dtype"],
            " x ".join(f"{size:,}" for size in array["chunk"]),
            f"{array['bytes']:,}",
        ]
        for name, array in run["arrays"].items()
    ]
    pipeline.print_table(["array", "sizes", "dtype", "chunk", "bytes"], rows)
    print(f"{run['rows']:,} rows of predictions, {run['stored_bytes']:,} bytes on disk")
    print(f"arithmetic {run['arithmetic']}; {run['seconds']:.1f} s on {run['executor']}")


def print_comparison(compared: Any) -> None:
    """Print runs side by side, each beside the first, as many as the terminal has room for."""
    header = ["run", "name", "folder"]
    rows = [
        [str(at), name, path]
        for at, (name, path) in enumerate(zip(compared.names, compared.paths, strict=True), 1)
    ]
    pipeline.print_table(header, rows)
    for remark in compared.remarks:
        print(remark)
    groups: dict[str, list[Any]] = {}
    for row in compared.rows:
        if not row.votes:
            groups.setdefault(f"'{row.split}' by {row.metric}", []).append(row)
        elif row.name == "all" and not row.is_class:
            groups.setdefault(f"'{row.split}' by votes of the nearest", []).append(row)
    for title, rows_of in groups.items():
        _print_compared(title, rows_of)
    differing = [[key, *texts] for key, texts in compared.settings.items()]
    if differing:
        numbers = [str(at) for at in range(1, len(compared.names) + 1)]
        pipeline.print_table(["differs", *numbers], differing)
    for at, excluded in enumerate(compared.excluded, 1):
        if excluded:
            print(f"run {at}:")
            _print_excluded({"excluded": excluded})


_NAME, _VALUE = 26, 17  # columns of a terminal that a name, and two accuracies, take


def _print_compared(title: str, rows: Sequence[Any]) -> None:
    """Print some accuracies; of many classes those that differ most."""
    whole, classes = ([row for row in rows if row.is_class == of] for of in (False, True))
    shown = classes
    if len(classes) > MAX_ROWS:
        most = {id(row): max(abs(value or 0) for value in row.differences) for row in classes}
        shown = sorted(classes, key=lambda row: -most[id(row)])[:MAX_ROWS]
    room = max(1, (shutil.get_terminal_size().columns - _NAME) // _VALUE)
    others = len(rows[0].accuracies) - 1
    for start in range(1, others + 1, room):
        columns = range(start, min(start + room, others + 1))
        cells = [
            [_title(row), _share(row.accuracies[0]), *(_beside(row, at) for at in columns)]
            for row in [*whole, *shown]
        ]
        pipeline.print_table([title, "1", *(f"{at + 1}, less 1" for at in columns)], cells)
    if len(shown) < len(classes):
        print(f"... and {len(classes) - len(shown)} classes more, which differ less")


def _title(row: Any) -> str:
    return f"{row.votes} by {row.metric}" if row.votes else str(row.name)


def _beside(row: Any, at: int) -> str:
    difference = row.differences[at]
    return _share(row.accuracies[at]) + ("" if difference is None else f" {difference:+.4f}")


def _say_how_many_more(names: Sequence[str]) -> None:
    if len(names) > MAX_ROWS:
        print(f"... and {len(names) - MAX_ROWS} classes more")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def print_explanation(explanation: Any) -> None:
    name = explanation.label_name
    label = f"labelled {printable(name)}" if name else "without label"
    print(f"{explanation.split} image {explanation.sample}, {label}")
    if explanation.left_out:
        print(f"measured from {printable(name)} without it, as in the run (leave_one_out)")
    rows = [
        [name, *(f"{value:.4f}" for value in explanation.distances[:, column])]
        for column, name in enumerate(explanation.class_names)
    ]
    pipeline.print_table(["class", *explanation.metrics], rows)
    for metric, name in explanation.predicted.items():
        print(f"nearest by {metric}: {printable(name)}")
    if explanation.neighbours:
        _print_nearest(explanation.neighbours)


def _print_nearest(neighbours: Mapping[str, Sequence[Any]]) -> None:
    """Print the nearest images by each metric."""
    rows = [
        [metric, f"{rank:,}", near.split, str(near.sample), near.label_name, f"{near.distance:.4f}"]
        for metric, images in neighbours.items()
        for rank, near in enumerate(images, start=1)
    ]
    if rows:
        pipeline.print_table(["nearest by", "rank", "split", "sample", "class", "distance"], rows)
    else:
        print("there is no other image of the run's classes to compare it with")


def print_datasets(known: Sequence[tuple[Any, str]]) -> None:
    rows = [
        [entry.name, " x ".join(map(str, entry.image)), entry.licence, files, entry.title]
        for entry, files in known
    ]
    pipeline.print_table(["name", "image", "licence", "files", "what"], rows)


def print_digests(digests: Mapping[str, str | None]) -> None:
    for name, value in digests.items():
        print(f"{name:12} {'not written' if value is None else 'sha256:' + value}")


def reader_left(error: Exception) -> bool:
    """Tell whether the reader of the output closed it, as `head` does: nobody need be told."""
    if not isinstance(error, BrokenPipeError):
        return False
    # what is in the buffer would be tried again at the end of the process
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


_LONGEST = 500  # characters of a message that is not ours


def unforeseen(error: Exception) -> str:
    """Describe an error that is none of ours: its kind, its message, a cure."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    kinds = [kind.__name__ for kind in type(error).__mro__]
    summary = f"{kinds[0]}: {text}" if text else kinds[0]
    kept = "what is written is kept"
    if "OutOfMemoryError" in kinds or "cuda out of memory" in text.lower():
        return f"{summary}; end what else uses the GPU, or run it with --set device=cpu: {kept}"
    if isinstance(error, MemoryError):
        return (
            f"{summary}; run fewer tasks at once (--set cluster.workers=1), or free memory: {kept}"
        )
    if isinstance(error, OSError):
        return str(error) or summary
    return f"{summary}; pixsim --debug shows where it comes from"


def print_bad_samples(error: BadSamplesError) -> None:
    rows = [["" if value is None else str(value) for value in row] for row in error.rows]
    pipeline.print_table(error.header, rows, sys.stderr)
    if error.count > len(rows):
        print(f"... and {error.count - len(rows):,} more", file=sys.stderr)
