"""To ONNX: one graph with a dynamic batch, and the preparation of images recorded in it."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_med.files import write_json
from ssl_med.formats.base import Written
from ssl_med.formats.preprocessing import preprocessing
from ssl_med.formats.served import program_of, served
from ssl_med.formats.to_torch_export import inputs_of

NEEDS = ("onnx", "onnxscript")
FILE = "model.onnx"

_LOAD = """import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
{outputs} = session.run(None, {{{inputs}}})  # image: float32 (b, {channels}, {size})"""


def write(part: nn.Module, card: Mapping[str, Any], folder: Path) -> Written:
    """Write ``model.onnx`` (torch's exporter of exported programs) and ``preprocessing.json``."""
    facts, space = preprocessing(card), list(card["input"]["crop"])
    program, names = program_of(part, space), served(part).names
    inputs = inputs_of(program)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of the exporter about itself
        warnings.filterwarnings("ignore", category=FutureWarning)
        exported = torch.onnx.export(
            program, input_names=inputs, output_names=names, dynamo=True, verbose=False, external_data=False
        )
    if exported is None:
        raise RuntimeError("torch.onnx.export answered with no program")
    _clean(exported.model, {"ssl_med.preprocessing": json.dumps(facts), "ssl_med.outputs": json.dumps(names)})
    folder.mkdir(parents=True, exist_ok=True)
    exported.save(str(folder / FILE), external_data=None)
    write_json(folder / "preprocessing.json", facts)
    load = _LOAD.format(
        outputs=", ".join(names) + ("," if len(names) == 1 else ""),
        inputs=", ".join(f'"{name}": {name}' for name in inputs),
        channels=facts["channels"],
        size=", ".join(map(str, space)),
    )
    notes = [
        "The batch is dynamic, the size of the image is not.",
        "The preparation of images stands in `preprocessing.json` and in the graph's metadata "
        "(`ssl_med.preprocessing`).",
    ]
    return Written("onnx", FILE, load, notes, front={"library_name": "onnx"})


def _clean(model: Any, facts: dict[str, str]) -> None:
    """Replace what the exporter notes about code and machine by what a user of the graph must know."""
    model.metadata_props.clear()
    model.metadata_props.update(facts)
    for graph in model.graphs():
        graph.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            value.metadata_props.clear()


def opens(folder: Path) -> None:
    """Check what lies in a folder, as its client does."""
    import onnx

    onnx.checker.check_model(str(folder / FILE), full_check=True)
