"""To PyTorch itself: a program that ``torch.export.load`` opens without a line of ours."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_med.files import write_json
from ssl_med.formats.base import Written
from ssl_med.formats.preprocessing import preprocessing
from ssl_med.formats.served import program_of, served

NEEDS = ()
FILE = "model.pt2"

_LOAD = """import torch

program = torch.export.load("FOLDER/model.pt2").module()
{outputs} = program(image=image{more})  # image: (b, {channels}, {size})"""


def write(part: nn.Module, card: Mapping[str, Any], folder: Path) -> Written:
    """Write ``model.pt2`` with a dynamic batch, and ``preprocessing.json`` beside and inside it."""
    facts, space = preprocessing(card), list(card["input"]["crop"])
    program = program_of(part, space)
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, folder / FILE, extra_files={"preprocessing.json": json.dumps(facts)})
    write_json(folder / "preprocessing.json", facts)
    names = served(part).names
    spaced = "spacing" in inputs_of(program)
    load = _LOAD.format(
        outputs=", ".join(names) + ("," if len(names) == 1 else ""),
        more=", spacing=spacing" if spaced else "",
        channels=facts["channels"],
        size=", ".join(map(str, space)),
    )
    notes = ["The batch is dynamic, the size of the image is not.", f"Outputs: {', '.join(names)}."]
    return Written("torch_export", FILE, load, notes, front={"library_name": "pytorch"})


def inputs_of(program: torch.export.ExportedProgram) -> list[str]:
    """Names of what a program takes."""
    return [str(name) for name in program.graph_signature.user_inputs]


def opens(folder: Path) -> None:
    """Check that the archive is whole; ``torch.export.load`` may run code that it names, so it is not called.

    Raises:
        ValueError: it is not.
    """
    try:
        with zipfile.ZipFile(folder / FILE) as archive:
            names, damaged = archive.namelist(), archive.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{FILE} is no whole archive") from error
    if damaged or not any(name.endswith("/models/model.json") for name in names):
        raise ValueError(f"{FILE} is no whole program of torch.export")
