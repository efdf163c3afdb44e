"""Job files: that of a name, what stands for one, and writing one.

A folder, an archive, a store or the name of a data set stands for the job that has it for images,
and defaults for all else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from pipeline.config.job_settings import JobSettings, changed_job, load_job, make_job
from pipeline.config.yaml_files import load_mapping, to_yaml
from pipeline.core.arguments import checked
from pipeline.core.errors import ConfigError
from pipeline.core.paths import is_path_like, locate, options_of

Say = Callable[[str], None]
SUFFIXES = (".yml", ".yaml")
_PACKAGE = Path(__file__).resolve().parents[1]
# in a wheel, and in a checkout; what lies beside an installed package is another's
WORKFLOWS = (_PACKAGE / "workflows", _PACKAGE.parent / "workflows")
_HIDDEN = "storage_options, and options of a cluster, are never written: add them where needed"


def is_job_file(text: str) -> bool:
    return text.lower().endswith(SUFFIXES)


def workflow(name: str) -> Path:
    """Return the path of a job file that comes with the project.

    Raises
    ------
    ConfigError
        Where there is none of that name.
    """
    path = find_workflow(name)
    if path is None:
        raise ConfigError(f"workflow '{name}' is not installed, expected it in {WORKFLOWS[-1]}")
    return path


def find_workflow(name: str) -> Path | None:
    """Return the job file of the project that a name means: its own, or that of its job."""
    if not re.fullmatch(r"[\w-]+", name):
        return None
    for folder in [folder for folder in WORKFLOWS if folder.is_dir()][:1]:
        if (folder / f"{name.replace('-', '_')}.yml").is_file():
            return folder / f"{name.replace('-', '_')}.yml"
        for path in sorted(folder.glob("*.yml")):
            if re.search(rf"^name: {name}$", path.read_text(encoding="utf-8"), re.MULTILINE):
                return path
    return None


@checked
def find_job(
    source: Path | str,
    overrides: Iterable[str] = (),
    changes: Mapping[str, Any] | None = None,
    say: Callable[[str], None] | None = None,
) -> JobSettings:
    """Return the job that a text stands for.

    Parameters
    ----------
    source
        A job file (`.yml`, `.yaml`); the name of a job that comes with the project, such as
        `digits`; or what an ingest takes: a folder, archive, table or URL, a store, the name of a
        data set. A file or folder of that name comes before the project's job.
    overrides
        `key=value` texts that replace keys, see `load_job`.
    changes
        Values that replace keys, such as `{"fit": "train", "classes": ["3", "7"]}`; None: as is.
    say
        Told, in a line, what a name was taken for.

    Raises
    ------
    ConfigError
        Where a job file cannot be read, keys are unknown, or values wrong.

    Examples
    --------
    >>> job = find_job("flowers.tar", ["images.resize=64"], {"classes": ["rose", "tulip"]})
    >>> job.name, job.images.source, job.images.resize, job.classes
    ('flowers', 'flowers.tar', 64, ('rose', 'tulip'))
    """
    text, changed = str(source), dict(changes or {})
    if not text.strip():
        raise ConfigError("an empty name, expected a folder of images, or a job file")
    if is_job_file(text):
        path = locate(source)
        content = {"name": path.stem, **load_mapping(path, key="images")}
        return changed_job(content, changed, overrides, path.parent, str(path))
    known = find_workflow(text)
    if known is not None and not Path(text).exists():
        if say is not None:
            say(f"'{text}' is the job {known.name} that comes with pixsim")
        content = {"name": known.stem, **load_mapping(known)}
        content.pop("output", None)  # into the data folder, wherever that is
        return changed_job(content, changed, overrides, known.parent, str(known))
    if known is not None and say is not None:
        say(f"'{text}' is what has that name here, not the job that comes with pixsim: {known}")
    options = options_of(cast(Path, source))
    images = {"source": text} | ({"storage_options": options} if options else {})
    return changed_job({"images": images}, changed, overrides, None, text)


def require_job(job: object) -> JobSettings:
    """Return the settings of a job that is given as such, as a mapping, or as `find_job` takes it.

    Raises
    ------
    ConfigError
        Where it is none of these, or not as it should be.
    """
    if isinstance(job, JobSettings):
        return job
    return find_job(cast(Path, job)) if is_path_like(job) else make_job(cast(Any, job))


def require_suffix(path: Path) -> None:
    """Raise `ConfigError` where a path would not be taken for that of a job file."""
    if not is_job_file(path.name):
        raise ConfigError(f"{path}: expected a name that ends in .yml, as those of job files do")


def require_unwritten(job: JobSettings, path: Path) -> None:
    """Raise `ConfigError` where a file is another one than that of this job, or no job file."""
    require_suffix(path)
    if path.exists() and not _is_of(job, path):
        raise ConfigError(
            f"{path}: exists and holds something else than this job; nothing was changed, name "
            "another file or remove it"
        )


def _is_of(job: JobSettings, path: Path) -> bool:
    try:
        there = load_job(path)
    except ConfigError:
        return False
    left = {key for key in ("fit", "evaluate") if getattr(job, key) is None}
    left |= {"storage_options"}
    return there.model_dump(exclude=left) == job.model_dump(exclude=left)


def write_new(file: Path, text: str) -> None:
    """Write a file that must not be there yet; `ConfigError` where it is or cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise ConfigError(
            f"{file}: exists already and was left as it is; name another file or remove it"
        ) from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror or error}") from None


def job_text(job: JobSettings) -> str:
    """Return the job file of a job: what is not the default."""
    known = given_keys(job)
    if set(known["images"]) == {"source"}:
        known["images"] = known["images"]["source"]
    if job.named_cluster is not None and not known.get("cluster"):
        known["cluster"] = job.cluster.kind
    hidden = job.storage_options or job.images.storage_options or job.cluster.options
    lines = [f"# {_HIDDEN}"] if hidden or job.cluster.dask else []
    for key, value in known.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{key}:", *(f"  {name}: {to_yaml(one)}" for name, one in value.items())]
        else:
            lines.append(f"{key}: {to_yaml(value)}")
    return "\n".join(lines) + "\n"


def given_keys(job: JobSettings) -> dict[str, Any]:
    """Return the keys of a job that are not the default, in plain values, name and output first."""
    known = job.model_dump(mode="json", exclude_defaults=True) | {"name": job.name}
    known["images"] = {key: one for key, one in known["images"].items() if one is not None}
    if len(known.get("evaluate", ())) == 1:
        known["evaluate"] = known["evaluate"][0]
    return {key: known[key] for key in JobSettings.model_fields if key in known}
