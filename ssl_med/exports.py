"""An export keeps a part with the recipe that rebuilds it: safetensors, a card, a page to read, and no pickle."""

import json
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ssl_med.backbones import Backbone, ViT
from ssl_med.decoders import PyramidDecoder
from ssl_med.errors import UserError
from ssl_med.model_card import seal, sha256_of
from ssl_med.recipe import build, recipe
from ssl_med.tasks import SupervisedTask

FORMAT = 1
T = TypeVar("T", bound=nn.Module)


def export(parts: dict[str, nn.Module], folder: str | Path, facts: dict[str, Any]) -> Path:
    """Write parts, card and model card; the card comes last, so a folder with a card is whole.

    Args:
        parts: name -> module, such as a pretext task's ``exports()``.
        folder: where to; made if it is not there.
        facts: what the card should say beside the parts: ``input``, ``training``, ``data``, and what else
            :mod:`ssl_med.model_card` shows.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    card: dict[str, Any] = {"format": FORMAT, "parts": {}, **facts}
    for name, module in parts.items():
        path, temporary = folder / f"{name}.safetensors", folder / f".{name}.safetensors"
        save_file({k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}, temporary)
        temporary.replace(path)
        card["parts"][name] = {
            **recipe(module),
            "file": path.name,
            "sha256": sha256_of(path),
            "parameters": sum(p.numel() for p in module.parameters()),
        }
    return seal(folder, card)


def read_card(folder: str | Path) -> dict[str, Any]:
    """The card of an export, or of the one export of a run folder.

    Raises:
        UserError: there is no export here, or it is of another format.
    """
    path = find_export(folder) / "card.json"
    card = json.loads(path.read_text())
    if card.get("format") != FORMAT:
        raise UserError(f"{path} is of format {card.get('format')}, this version reads {FORMAT}")
    return card


def exports_in(folder: str | Path) -> list[Path]:
    """The folders with a card that :func:`find_export` chooses from; also those made for another library."""
    folder = Path(folder)
    if (folder / "card.json").is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob("exports/*/card.json"))
    return found or sorted(path.parent for path in folder.glob("*/card.json"))


def find_export(folder: str | Path) -> Path:
    """The folder of an export: itself, ``exports/<name>`` of a run, or the one that ``ssl-med export`` made in it.

    Raises:
        UserError: none, or several.
    """
    found = exports_in(folder)
    if len(found) == 1:
        return found[0]
    what = (
        "has several exports: name one of " + ", ".join(f.name for f in found)
        if found
        else "holds no export (card.json)"
    )
    raise UserError(f"{folder} {what}; `ssl-med export RUN` writes one")


def load_backbone(folder: str, weights: bool = True) -> Backbone:
    """Rebuild an exported backbone; this function is itself a legal ``class_path``.

    Args:
        folder: an export, or a run with one.
        weights: False gives the same architecture with random weights: the control of every comparison.

    Raises:
        UserError: no such export, a changed file, or weights that do not fill the backbone exactly.
    """
    return _load(folder, "backbone", Backbone, weights)


def load_vit(folder: str, weights: bool = True) -> ViT:
    """As :func:`load_backbone`, for tasks that need a ViT: continued pretraining of an MAE names this function."""
    return _load(folder, "backbone", ViT, weights)


def load_decoder(folder: str, weights: bool = True) -> PyramidDecoder:
    """As :func:`load_backbone`, for the decoder that tasks such as Models Genesis export beside it."""
    return _load(folder, "decoder", PyramidDecoder, weights)


def load_task(folder: str) -> SupervisedTask:
    """Rebuild a fine-tuned task from its export, ready to predict."""
    return _load(folder, "task", SupervisedTask, True).eval()


def _load(folder: str, part: str, kind: type[T], weights: bool) -> T:
    from safetensors.torch import load_file

    card, where = read_card(folder), find_export(folder)
    if client := card.get("client"):
        raise UserError(f"{where} was made for {client['client']}: load it there, or take the native export")
    if part not in card["parts"]:
        raise UserError(f"{where} has no {part}; its parts: {', '.join(card['parts'])}")
    entry = card["parts"][part]
    module = build({"class_path": entry["class_path"], "init_args": entry["init_args"]}, kind, part)
    if not weights:
        return module
    path = where / entry["file"]
    if sha256_of(path) != entry["sha256"]:
        raise UserError(f"{path} is not the file its card describes (sha256 differs): copy the export anew")
    missing, unexpected = module.load_state_dict(load_file(path), strict=False)
    if missing or unexpected:
        raise UserError(f"{path} does not fill {entry['class_path']}: missing {missing}, unexpected {unexpected}")
    return module
