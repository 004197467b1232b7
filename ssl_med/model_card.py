"""What a folder of weights says of itself: ``card.json`` for programs, ``README.md`` for people, a hash of every file.

After the model cards of Mitchell et al. (arXiv 1810.03993) and what the authors of RAD-DINO (arXiv 2401.10815) publish
with their weights: data, recipe, compute, results, intended use and licence.
"""

import hashlib
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_med.errors import UserError
from ssl_med.files import write_json, write_whole

NOT_STATED = "not stated"
USE = {
    "intended": (
        "Research: a starting point for fine-tuning on labelled images of the same kind, and the comparison of "
        "pretraining methods."
    ),
    "forbidden": (
        "It is not a medical device, has not been validated for any clinical decision, and must not be used for one; "
        "nor to identify persons. It may carry the biases of its data: check subgroups (site, scanner, sex, age) "
        "before relying on anything built on it."
    ),
}


def sha256_of(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def licence(data: str | None = None, weights: str | None = None) -> dict[str, str]:
    """Under what terms code, weights and data are; what nobody said is said to be unsaid."""
    return {"code": "Apache-2.0", "weights": weights or NOT_STATED, "data": data or NOT_STATED}


def seal(folder: Path, card: dict[str, Any]) -> Path:
    """Finish a folder: page, hashes of all files, and the card last, so that a folder with a card is whole.

    Args:
        folder: with everything in it but these.
        card: all the rest; ``use`` and ``licence`` are filled in where they are not given.

    Returns:
        The folder.
    """
    defaults: dict[str, Any] = {"use": dict(USE), "licence": licence()}
    full: dict[str, Any] = {**defaults, **card}
    (folder / "card.json").unlink(missing_ok=True)  # while files change, the folder is not whole
    write_whole(folder / "README.md", model_card(full))
    full["files"] = {name: sha256_of(folder / name) for name in files_in(folder)}
    write_json(folder / "card.json", full)
    return folder


def files_in(folder: Path) -> list[str]:
    """All files of a folder but the card itself, by relative name.

    Raises:
        UserError: a link, which may lead out of the folder.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise UserError(f"{path.name} is a link; an export holds plain files only")
        if path.is_file():
            found.append(path.relative_to(folder).as_posix())
    return [name for name in found if name != "card.json"]


def citation(class_path: str) -> list[str]:
    """What to cite for a task: the first sentence of its file, and the papers named in file and class.

    Args:
        class_path: dotted name of the task; its module is imported already where the card is written.
    """
    module_path, _, name = class_path.rpartition(".")
    task = getattr(sys.modules.get(module_path), name, None)
    if task is None:
        return []
    texts = [inspect.getdoc(sys.modules[task.__module__]) or "", inspect.getdoc(task) or ""]
    papers = dict.fromkeys(re.findall(r"arXiv[: ]\s*(\d{4}\.\d{4,5})", " ".join(texts)))
    first = " ".join(texts[0].split("\n\n")[0].split())
    return [first, *[f"arXiv:{paper}, https://arxiv.org/abs/{paper}" for paper in papers]] if papers else [first]


def model_card(card: Mapping[str, Any]) -> str:
    """The page a person reads: what it is, what it saw, what it is for and what not."""
    parts = [_front(card), ["# Model card", ""], _loading(card), _parts(card)]
    parts += [_facts(card, title) for title in ("input", "training", "compute", "data")]
    parts += [_results(card), _recipe(card), _citation(card), _use(card), _licence(card)]
    return "\n".join(line for part in parts for line in part)


def _front(card: Mapping[str, Any]) -> list[str]:
    """Lines that a hub reads."""
    known = card["licence"]["weights"] if "licence" in card else NOT_STATED
    tags = ["medical-imaging", "self-supervised-learning"]
    is_name = known != NOT_STATED and re.fullmatch(r"[\w.+-]+", known)  # terms in words stand below
    licensed = f"license: {known.lower() if is_name else 'other'}"
    extra = [f"{key}: {value}" for key, value in ((card.get("client") or {}).get("front") or {}).items()]
    return ["---", licensed, *extra, "tags:", *[f"- {tag}" for tag in tags], "---", ""]


def _loading(card: Mapping[str, Any]) -> list[str]:
    client = card.get("client")
    if not client:
        part = "task" if "task" in card.get("parts", {}) else "backbone"
        return [f"Made with `ssl_med`. Load it with `ssl_med.load_{part}(FOLDER)`.", ""]
    notes = [f"- {note}" for note in client["notes"]]
    if client["untrained"]:
        groups = sorted({name.split(".")[0] for name in client["untrained"]})
        notes.append(f"- Not trained: {len(client['untrained'])} weights in {', '.join(f'`{g}`' for g in groups)}.")
    shown = [f"```{client.get('language', 'python')}", client["load"], "```"]
    return [f"Made with `ssl_med` for {client['client']}.", "", *shown, "", *notes, ""]


def _parts(card: Mapping[str, Any]) -> list[str]:
    lines = ["## Parts", "", "| part | class | parameters | sha256 |", "|---|---|---|---|"]
    for name, part in card.get("parts", {}).items():
        digest = f"`{part['sha256'][:16]}`" if part.get("sha256") else "in `card.json`"
        lines.append(f"| {name} | `{part['class_path']}` | {part['parameters']:,} | {digest} |")
    return [*lines, ""]


def _facts(card: Mapping[str, Any], title: str) -> list[str]:
    if not card.get(title):
        return []
    return [f"## {title.capitalize()}", "", *[f"- {key}: {value}" for key, value in card[title].items()], ""]


def _results(card: Mapping[str, Any]) -> list[str]:
    results = card.get("results")
    if results is None:
        return []
    lines = [f"- {name}: {_shown(value)}" for name, value in results.items()]
    return ["## Results", "", *(lines or ["None were measured in the run."]), ""]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and "mean" in value:
        low, high = value.get("low"), value.get("high")
        interval = "no interval" if low is None or high is None else f"95 % interval {low:.3f} to {high:.3f}"
        return f"{value['mean']:.3f} ({interval}, n = {value.get('n')})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _recipe(card: Mapping[str, Any]) -> list[str]:
    if not card.get("recipe"):
        return []
    return ["## Recipe", "", "The resolved config, without places, stands under `recipe` in `card.json`.", ""]


def _citation(card: Mapping[str, Any]) -> list[str]:
    if not card.get("citation"):
        return []
    return ["## Citation of the method", "", *[f"- {line}" for line in card["citation"]], ""]


def _use(card: Mapping[str, Any]) -> list[str]:
    use = card.get("use") or USE
    return ["## Intended use", "", use["intended"], "", "## Not to be used for", "", use["forbidden"], ""]


def _licence(card: Mapping[str, Any]) -> list[str]:
    terms = card.get("licence") or licence()
    return ["## Licence", "", *[f"- {name}: {text}" for name, text in terms.items()], ""]
