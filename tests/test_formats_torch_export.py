"""torch.export.load runs our programs without a line of ours."""

import json
import subprocess
import sys
import zipfile

import pytest
import torch
from exports_of import distance, image_of, native

from finetune import Classify, Segment
from ssl_med.backbones import MonaiBackbone, TimmBackbone, UNetEncoder
from ssl_med.errors import UserError
from ssl_med.formats import convert
from ssl_med.tasks import SupervisedTask

BACKBONES = {
    "unet": (lambda: UNetEncoder(3, widths=(4, 8)), [16, 16, 8]),
    "timm": (lambda: TimmBackbone("resnet10t", in_channels=1), [32, 32]),
    "monai": (lambda: MonaiBackbone("DynUNet", 3, width=4), [16, 16, 16]),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_features_of_any_backbone(tmp_path, name):
    torch.manual_seed(0)
    make, crop = BACKBONES[name]
    backbone = make()
    check(backbone, convert(native(backbone, tmp_path / "native", crop), tmp_path / "pt2", "torch_export"), crop)


@pytest.mark.parametrize("changes", [{}, {"positions": "rotary", "class_token": False}], ids=str)
def test_features_of_a_vit(tmp_path, tiny_vit, changes):
    vit, crop = tiny_vit(3, **changes), [8, 8, 16]
    check(vit, convert(native(vit, tmp_path / "native", crop), tmp_path / "pt2", "torch_export"), crop)


def check(backbone, folder, crop) -> None:
    program = torch.export.load(folder / "model.pt2").module()
    for count in (1, 4):
        image = image_of(count, 1, crop)
        with torch.no_grad():
            features, found = backbone(image), program(image=image)
        for ours, theirs in zip([features.pooled, *features.maps], found, strict=True):
            assert distance(ours, theirs) < 1e-5


@pytest.mark.parametrize("kind", ["classify", "segment"])
def test_logits(tmp_path, tiny_vit, kind):
    crop = [16, 16]
    task = Classify(tiny_vit(2), 3, crop) if kind == "classify" else Segment(tiny_vit(2), 3, crop, widths=(4, 8))
    folder = convert(native(task, tmp_path / "native", crop), tmp_path / "pt2", "torch_export")
    image = image_of(3, 1, crop)
    with torch.no_grad():
        (found,) = torch.export.load(folder / "model.pt2").module()(image=image)
        assert distance(task.logits(image), found) < 1e-5


def test_it_needs_no_line_of_ours_and_names_no_place(tmp_path, tiny_vit):
    folder = convert(native(tiny_vit(2), tmp_path / "native", [16, 16]), tmp_path / "pt2", "torch_export")
    lines = "import sys, torch; p = torch.export.load(sys.argv[1]).module(); p(image=torch.zeros(3, 1, 16, 16)); "
    lines += "assert 'ssl_med' not in sys.modules"
    subprocess.run([sys.executable, "-c", lines, str(folder / "model.pt2")], check=True, cwd=tmp_path)
    content = (folder / "model.pt2").read_bytes()
    assert b".py" not in content
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        inside = [name for name in archive.namelist() if name.endswith("preprocessing.json")]
        assert json.loads(archive.read(inside[0])) == json.loads((folder / "preprocessing.json").read_text())


class WithoutLogits(SupervisedTask):
    metric = "none"

    def __init__(self, backbone: UNetEncoder) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch, progress): ...

    def predict(self, batch): ...

    def score(self, prediction, batch): ...

    def summarise(self, cases): ...


def test_a_task_without_logits_is_refused():
    from ssl_med.formats.served import served

    with pytest.raises(UserError, match="WithoutLogits has no logits"):
        served(WithoutLogits(UNetEncoder(2, widths=(4, 8))))
