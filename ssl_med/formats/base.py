"""From a native export to the folder of another library, with the same card on top."""

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ssl_med.backbones import Backbone
from ssl_med.errors import UserError
from ssl_med.exports import find_export, load_backbone, load_task, read_card
from ssl_med.model_card import licence, seal

CLIENTS = ("timm", "monai", "nnunet", "transformers", "onnx", "torch_export")
"""Whom we write for, beside ourselves; each has a module ``to_NAME`` here."""

_NOT_OURS = ("format", "parts", "files", "client")


@dataclass(frozen=True)
class Written:
    """What a client has to know of a folder made for it.

    Attributes:
        client: one of :data:`CLIENTS`.
        model: the client's class or architecture.
        load: lines that load it; ``FOLDER`` stands for where it lies.
        notes: what differs from the native export, in sentences.
        untrained: names of weights that the client's class has and ours has not; they are random.
        front: lines of the page's head that the client's hub reads.
        language: of the lines that load it.
    """

    client: str
    model: str
    load: str
    notes: list[str] = field(default_factory=list)
    untrained: list[str] = field(default_factory=list)
    front: dict[str, str] = field(default_factory=dict)
    language: str = "python"


def convert(source: str | Path, folder: str | Path, to: str, terms: Mapping[str, str] | None = None) -> Path:
    """Write a native export in the form of another library.

    Args:
        source: native export, or a run with one.
        folder: where to; made if it is not there, empty if it is.
        to: one of :data:`CLIENTS`.
        terms: of ``weights`` and ``data``, where they are other than the export says.

    Returns:
        The folder.

    Raises:
        UserError: no such client, a folder in use, a client that is not installed, or a model that it cannot compute.
    """
    if to not in CLIENTS:
        raise UserError(f"--to {to}: expected native or one of {', '.join(CLIENTS)}")
    source, folder = find_export(source), Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; give another folder")
    card = read_card(source)
    card["licence"] = {**licence(), **card.get("licence", {}), **(terms or {})}
    part = load_task(str(source)) if "task" in card["parts"] else load_backbone(str(source))
    part.eval().requires_grad_(False)
    written = client(to).write(part, card, folder)
    kept = {name: value for name, value in card.items() if name not in _NOT_OURS}
    parts = {name: {**entry, "file": None, "sha256": None} for name, entry in card["parts"].items()}
    return seal(folder, {**kept, "format": card["format"], "parts": parts, "client": asdict(written)})


def client(name: str) -> Any:
    """The module that writes for a client.

    Raises:
        UserError: no such client, or it is not installed.
    """
    if name not in CLIENTS:
        raise UserError(f"{name!r} is none of the libraries that exports are made for: {', '.join(CLIENTS)}")
    module = importlib.import_module(f"ssl_med.formats.to_{name}")
    for package in module.NEEDS:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise UserError(f"--to {name} needs {package}: pip install 'ssl_med[export]'") from error
    return module


def backbone_of(part: nn.Module) -> tuple[Backbone, list[str]]:
    """The backbone of a part, and what is to say where a head stays behind.

    Raises:
        UserError: there is none.
    """
    if isinstance(part, Backbone):
        return part, []
    backbone = getattr(part, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise UserError(f"{type(part).__name__} has no backbone: export it as native, onnx or torch_export")
    return backbone, ["The fine-tuned backbone without its head: export to onnx or torch_export to keep the head."]


def refuse(client: str, reasons: list[str]) -> None:
    """Say why a model cannot be written for a client.

    Raises:
        UserError: if there is a reason.
    """
    if reasons:
        raise UserError(f"--to {client} cannot express this model: {'; '.join(reasons)}. Export it to onnx instead")
