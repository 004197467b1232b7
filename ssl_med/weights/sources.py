"""Where weights come from: folders and files of six kinds, read as plain tensors and facts."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_med.errors import UserError
from ssl_med.exports import find_export, read_card
from ssl_med.weights.pickles import load_tensors

PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".model")
_KINDS = "an export or run of ssl_med, a .safetensors file, a .pt/.pth/.ckpt/.bin/.tar file, or a Hugging Face folder"


@dataclass
class Source:
    """What was read, before anything is understood.

    Attributes:
        name: of the file or folder, without the way to it.
        content: tensors by name, maybe nested, with whatever else the file holds.
        facts: what is said about them elsewhere: our card's ``init_args``, or Hugging Face's ``config.json``.
        kind: in words.
        sha256: of the file; of all files one after the other where there are several; empty for tensors in memory.
    """

    name: str
    content: Mapping[str, Any]
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""


def read_source(source: str | Path | Mapping[str, Any]) -> Source:
    """Read a source of any kind; nothing is downloaded, and nothing in it can run.

    Args:
        source: a path, or a state dict.

    Raises:
        UserError: no such thing, a damaged file, or one that holds more than tensors.
    """
    if isinstance(source, Mapping):
        return Source("a state dict", source, "tensors in memory")
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UserError(f"{path} is neither a file nor a folder (nothing is downloaded); give {_KINDS}")
    if path.name.endswith(".index.json"):
        return _shards(path, "sharded safetensors")
    if path.suffix == ".safetensors":
        return Source(path.name, _safetensors(path), "safetensors", sha256=_sha256([path]))
    if path.suffix in PICKLED:
        return _checkpoint(path)
    raise UserError(f"{path} is no source of weights; give {_KINDS}")


def _folder(path: Path) -> Source:
    if any(any(path.glob(place)) for place in ("card.json", "exports/*/card.json")):
        return _export(path)
    if (path / "checkpoints").is_dir():
        return _checkpoint(_newest(path / "checkpoints"))
    if (path / "config.json").is_file():
        return _hugging_face(path)
    if any(path.glob("*/card.json")):  # what `ssl-med export --out` made
        return _export(path)
    runs = sorted({card.parents[2] for card in path.glob("*/exports/*/card.json")})  # of a comparison
    if len(runs) == 1:
        return _export(runs[0])
    if runs:
        raise UserError(f"{path} holds several runs; name one of: {', '.join(str(run) for run in runs[:6])}")
    raise UserError(f"{path} holds neither card.json, checkpoints/ nor config.json; give {_KINDS}")


def _export(path: Path) -> Source:
    card, where = read_card(path), find_export(path)
    if "client" in card:
        return _made_for_client(card, where)
    part = next((name for name in ("backbone", "task") if name in card["parts"]), None)
    if part is None:
        raise UserError(f"{where} has no backbone; its parts: {', '.join(card['parts'])}")
    entry = card["parts"][part]
    file = _inside(where, str(entry["file"]))
    digest = _sha256([file])
    if digest != entry["sha256"]:
        raise UserError(f"{file} is not the file its card describes (sha256 differs): copy the export anew")
    if part == "task":
        return _tuned(where, entry, file, digest)
    facts = {"class_path": entry["class_path"], **entry["init_args"]}
    return Source(where.name, _safetensors(file), "an export of ssl_med", facts, digest)


def _tuned(where: Path, entry: Mapping[str, Any], file: Path, digest: str) -> Source:
    """The backbone of a fine-tuned task; its head stays behind."""
    recipe = entry["init_args"].get("backbone")
    tensors = {name: value for name, value in _safetensors(file).items() if name.startswith("backbone.")}
    if not tensors or not isinstance(recipe, Mapping):
        raise UserError(f"{where} holds {entry['class_path']}, a task without a part named backbone")
    facts = {"class_path": recipe["class_path"], **recipe["init_args"]}
    return Source(where.name, tensors, f"the backbone of {entry['class_path']}, an export of ssl_med", facts, digest)


def _made_for_client(card: dict[str, Any], where: Path) -> Source:
    """An export in another library's layout, read as anybody's file of tensors."""
    client, hashes = card["client"]["client"], card.get("files") or {}
    names = [name for name in hashes if name.endswith((".safetensors", *PICKLED))]
    if len(names) != 1 or ".." in Path(names[0]).parts or not (where / names[0]).is_file():
        raise UserError(f"{where} was made for {client}, in a form that is not read back: take the native export")
    if _sha256([where / names[0]]) != hashes[names[0]]:
        raise UserError(f"{where / names[0]} is not the file its card describes (sha256 differs): copy the export anew")
    found = read_source(where / names[0])
    if client == "transformers":
        found.facts["config"] = _json(where / "config.json")
    elif heads := card["parts"].get("backbone", {}).get("init_args", {}).get("heads"):
        found.facts["heads"] = heads
    return Source(where.name, found.content, f"an export of ssl_med for {client}", found.facts, found.sha256)


def _newest(folder: Path) -> Path:
    """The newest checkpoint of a run that is what was saved."""
    for path in sorted(folder.glob("step=*.ckpt"), reverse=True):
        if path.is_file() and _sha256([path]) in _recorded(path):  # a sharded one is a folder
            return path
    raise UserError(f"{folder} holds no whole checkpoint")


def _recorded(path: Path) -> list[str]:
    """The hash beside a checkpoint; two while its name goes from one file to the next."""
    record = path.with_name(f"{path.name}.sha256")
    return record.read_text().split() if record.is_file() else []


def _checkpoint(path: Path) -> Source:
    digest, recorded = _sha256([path]), _recorded(path)
    if recorded and digest not in recorded:
        raise UserError(f"{path} is damaged: its content is not what was saved")
    content = load_tensors(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not tensors by name")
    plan = content.get("nnssl_adaptation_plan")
    facts = {"adaptation_plan": plan} if isinstance(plan, Mapping) else {}
    return Source(path.name, content, "a checkpoint of tensors", facts, digest)


def _hugging_face(path: Path) -> Source:
    config = _json(path / "config.json")
    if "auto_map" in config:
        raise UserError(
            f"{path} brings code of its own (auto_map in config.json), which is never run. To read its tensors by "
            "their names alone, give the .safetensors file in it"
        )
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        if not (path / name).is_file():
            continue
        found = read_source(path / name)
        return Source(path.name, found.content, f"a Hugging Face folder ({name})", {"config": config}, found.sha256)
    raise UserError(f"{path} holds neither model.safetensors, its index, nor pytorch_model.bin")


def _shards(index: Path, kind: str) -> Source:
    names = _json(index).get("weight_map")
    if not isinstance(names, Mapping) or not all(isinstance(file, str) for file in names.values()):
        raise UserError(f"{index} is no index of safetensors: it has no weight_map from names to files")
    files = [_inside(index.parent, name) for name in sorted(set(names.values()))]
    content: dict[str, Any] = {}
    for file in files:
        content |= _safetensors(file)
    if lost := sorted(set(names) - set(content)):
        raise UserError(f"{index} names tensors that its files do not hold: {', '.join(lost[:5])}")
    return Source(index.parent.name, content, kind, sha256=_sha256(files))


def _inside(folder: Path, name: str) -> Path:
    """A safetensors file directly inside a folder; a name that leads elsewhere is refused."""
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise UserError(f"{folder} names the file {name!r}, which is no .safetensors file directly inside it")
    if not (folder / name).is_file():
        raise UserError(f"{folder} names {name}, which is not there: copy the folder anew")
    return folder / name


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file ({error}); copy it anew") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings by name")
    return content


def _sha256(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
