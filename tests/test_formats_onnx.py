"""onnxruntime computes what we compute, at any number of images, and knows how they are to be prepared."""

import json

import onnx
import onnxruntime
import pytest
import torch
from exports_of import distance, image_of, native

from finetune import Segment
from ssl_med.backbones import UNetEncoder
from ssl_med.card_check import check_folder
from ssl_med.formats import convert


def answers(folder, inputs: dict) -> dict[str, torch.Tensor]:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
    return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}


@pytest.mark.parametrize(
    ("axes", "changes"),
    [(2, {"positions": "rotary", "registers": 1}), (3, {"position_unit": "mm", "layer_scale": 0.2})],
    ids=str,
)
def test_features_of_a_vit(tmp_path, tiny_vit, axes, changes):
    vit, crop = tiny_vit(axes, **changes), [8] * (axes - 1) + [16]
    folder = convert(native(vit, tmp_path / "native", crop), tmp_path / "onnx", "onnx")
    for count in (1, 3):
        inputs, spacing = {"image": image_of(count, 1, crop)}, None
        if "position_unit" in changes:
            spacing = inputs["spacing"] = torch.rand(count, axes) + 0.5
        found = answers(folder, inputs)
        with torch.no_grad():
            features = vit(inputs["image"], spacing)
        assert set(found) == {"pooled", "map_0", "map_1"}
        assert distance(features.pooled, found["pooled"]) < 1e-4
        assert all(distance(ours, found[f"map_{i}"]) < 1e-4 for i, ours in enumerate(features.maps))


def test_logits_of_a_segmentation(tmp_path):
    torch.manual_seed(0)
    task, crop = Segment(UNetEncoder(3, widths=(4, 8), blocks=1), 3, [16, 16, 16], widths=(4, 8)), [16, 16, 16]
    source = native(task, tmp_path / "native", crop, class_names=["none", "left", "right"])
    folder = convert(source, tmp_path / "onnx", "onnx")
    for count in (1, 2):
        image = image_of(count, 1, crop)
        with torch.no_grad():
            assert distance(task.logits(image), answers(folder, {"image": image})["logits"]) < 1e-4
    content, model = (folder / "model.onnx").read_bytes(), onnx.load(folder / "model.onnx")
    assert b".py" not in content  # places of this machine, which torch's exporter notes
    assert b"ssl_med/" not in content
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert not [finding for finding in check_folder(folder) if finding.level == "error"]
    facts = json.loads({p.key: p.value for p in model.metadata_props}["ssl_med.preprocessing"])
    assert facts == json.loads((folder / "preprocessing.json").read_text())
    assert facts["class_names"] == ["none", "left", "right"]
    assert (facts["crop"], facts["orientation"], facts["axes"]) == (crop, "RAS", "(c, z, y, x)")
    assert facts["intensity"]["scales"][0] == {"low": -1000.0, "high": 1000.0, "shift": -1000.0, "factor": 0.0005}
