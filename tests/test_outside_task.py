"""A pretext task in a file of one's own, outside the library, trains through the command line in 2D and in 3D."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from stores import pictures, store_of, volumes

import ssl_med
from ssl_med.cli import main

PAGE = Path(__file__).parent.parent / "docs" / "extend.md"
SIMCLR = re.search(r"<!-- test: simclr.py -->\n```python\n(.*?)```", PAGE.read_text(), re.S)[1]  # what the page shows


@pytest.mark.parametrize("axes", [2, 3])
def test_simclr_from_a_file(tmp_path, monkeypatch, axes):
    (tmp_path / "simclr.py").write_text(SIMCLR)
    monkeypatch.syspath_prepend(tmp_path)  # what PYTHONPATH does
    monkeypatch.delitem(sys.modules, "simclr", raising=False)
    make = pictures if axes == 2 else volumes
    store_of(make(tmp_path / "in", 10), tmp_path / "store")
    run = tmp_path / "run"
    arguments = ["pretrain", f"smoke/mae_{axes}d", "--data", str(tmp_path / "store"), "--out", str(run)]
    arguments += ["--task.class_path", "simclr.SimCLR", "--watch.probes", "0", "--learner.lr", "0.003"]
    assert main(arguments) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 20
    assert all(math.isfinite(loss) for loss in losses)
    if axes == 2:  # crops of six volumes of noise are told apart no better after twenty steps
        assert sum(losses[-5:]) < sum(losses[:5])
    assert all(line["grad_norm"] > 0 for line in lines if "loss" in line)
    backbone = ssl_med.load_backbone(str(run)).eval()
    space = (1, 1, *[32 if axes == 2 else 16] * axes)
    features = backbone(torch.randn(space), torch.ones(1, axes))
    assert features.pooled.shape == (1, backbone.embed_dim)
    card = json.loads((Path(run) / "exports" / "backbone" / "card.json").read_text())
    assert card["training"]["task"] == "simclr.SimCLR"
    assert card["parts"]["backbone"]["class_path"] == "ssl_med.backbones.ViT"
