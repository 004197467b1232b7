"""What a run folder holds, read without trust: a part that is absent or broken is named, never made up."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_med.errors import UserError
from ssl_med.reporting.metrics import Metrics, read_metrics
from ssl_med.reporting.redact import hide_places

_MARKS = ("run.json", "metrics.jsonl", "table.json", "curve.json")
_DEPTH = 2  # a demo keeps its runs one or two folders down


@dataclass(frozen=True)
class Part:
    """One module of an export.

    Attributes:
        name: as in the card, such as ``backbone``.
        classes: class names of its recipe, outermost first.
        size: bytes of its file.
        sha256: of its file, computed now; empty where the file is absent.
        problem: what is wrong with it, in words; empty where nothing is.
    """

    name: str
    classes: list[str]
    size: int = 0
    sha256: str = ""
    problem: str = ""


@dataclass(frozen=True)
class Export:
    """One folder of ``exports/``; ``problem`` is empty where nothing is wrong with the card."""

    name: str
    parts: list[Part]
    problem: str = ""


@dataclass(frozen=True)
class Run:
    """The parts of one run folder; None or empty where a part is absent."""

    name: str
    info: dict[str, Any] = field(default_factory=dict)
    config: str | None = None
    metrics: Metrics | None = None
    pictures: list[Path] = field(default_factory=list)
    table: dict[str, Any] | None = None
    study: dict[str, Any] | None = None
    study_image: Path | None = None
    exports: list[Export] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_finetune(self) -> bool:
        """Whether this run measured the worth of weights rather than making them."""
        return self.info.get("kind") in ("finetune", "comparison", "curve") or (
            self.table is not None and "kind" not in self.info
        )


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is an object with names, else an empty one."""
    return value if isinstance(value, dict) else {}


def find_runs(folder: Path) -> list[Run]:
    """The run in a folder, or all runs one or two folders below it: pretraining first, then by start.

    Raises:
        UserError: the folder is absent or holds no run.
    """
    if not folder.is_dir():
        raise UserError(f"report: there is no folder named '{folder.name}'; give the folder of a run")
    runs = [read_run(path) for path in _run_folders(folder.resolve(), _DEPTH)]
    if not runs:
        raise UserError(
            f"report: '{folder.resolve().name}' holds none of {', '.join(_MARKS)}, and neither do the folders in it; "
            "give the folder that 'out' named when the run was started"
        )
    return sorted(runs, key=lambda run: (run.is_finetune, str(run.info.get("started", "")), run.name))


def _run_folders(folder: Path, depth: int) -> list[Path]:
    found = [folder] if any((folder / mark).is_file() for mark in _MARKS) else []
    whole = any((folder / mark).is_file() for mark in _MARKS[:2])
    if (whole and not _is_comparison(folder)) or depth == 0:
        return found
    for child in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        found += _run_folders(child, depth - 1)
    return found


def _is_comparison(folder: Path) -> bool:
    """A folder that holds a table over the runs inside it."""
    return (_read_object(folder / "run.json", []) or {}).get("kind") == "comparison"


def read_run(folder: Path) -> Run:
    """Read all parts of one run folder."""
    problems: list[str] = []
    info = _read_object(folder / "run.json", problems)
    table = _read_object(folder / "table.json", problems)
    image = folder / "curve.png"
    metrics_file = folder / "metrics.jsonl"
    return Run(
        name=folder.name,
        info=info or {},
        config=_read_config(folder / "config.yaml", problems),
        metrics=read_metrics(metrics_file) if metrics_file.is_file() else None,
        pictures=sorted((folder / "plots").glob("pictures_step=*.png"), key=_picture_step),
        table=table,
        study=_read_object(folder / "curve.json", problems),
        study_image=image if image.is_file() else None,
        exports=[_read_export(card.parent) for card in sorted(folder.glob("exports/*/card.json"))],
        problems=problems,
    )


def _picture_step(file: Path) -> int:
    digits = re.search(r"step=(\d+)", file.name)
    return int(digits.group(1)) if digits else -1


def _read_object(file: Path, problems: list[str]) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError as error:  # broken JSON and broken UTF-8 alike
        problems.append(f"{file.name} could not be read: {error}.")
        return None
    if not isinstance(content, dict):
        problems.append(f"{file.name} could not be read: it holds no JSON object.")
        return None
    return content


def _read_config(file: Path, problems: list[str]) -> str | None:
    """The config without places of this machine, or None; a file that is no YAML is not shown, as it may hold some."""
    if not file.is_file():
        return None
    import yaml

    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        problems.append("config.yaml is not shown: it is not valid YAML.")
        return None
    return yaml.safe_dump(hide_places(content), sort_keys=False, allow_unicode=True, width=100)


def _read_export(folder: Path) -> Export:
    problems: list[str] = []
    card = mapping(_read_object(folder / "card.json", problems))
    parts = [_read_part(folder, str(name), mapping(entry)) for name, entry in mapping(card.get("parts")).items()]
    if not problems and not parts:
        problems.append("the card names no parts.")
    return Export(folder.name, parts, " ".join(problems))


def _read_part(folder: Path, name: str, entry: dict[str, Any]) -> Part:
    """Hash the file of a part and compare with its card; the file is looked for in the folder of the card only."""
    file = folder / Path(str(entry.get("file", f"{name}.safetensors"))).name
    if not file.is_file():
        return Part(name, _class_names(entry), problem=f"{file.name} is absent.")
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    differs = entry.get("sha256") not in (None, sha256)
    problem = f"{file.name} is not the file that the card describes: the SHA-256 differs." if differs else ""
    return Part(name, _class_names(entry), file.stat().st_size, sha256, problem)


def _class_names(recipe: Any) -> list[str]:
    if isinstance(recipe, dict):
        own = [recipe["class_path"]] if isinstance(recipe.get("class_path"), str) else []
        return own + [name for value in recipe.values() for name in _class_names(value)]
    return [name for item in recipe for name in _class_names(item)] if isinstance(recipe, list) else []
