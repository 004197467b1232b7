"""Tables of numbers on a device: as torch makes them, and never made in a way for which the host waits."""

import ast
from pathlib import Path

import pytest
import torch

import ssl_med
from ssl_med.ops import shuffle
from ssl_med.ops.constants import constant
from ssl_med.ops.random import sample_keys
from ssl_med.transforms import LocalShuffle

LAYERS = ("ops", "tasks", "transforms", "backbones")
LEFT = {("ops", "constants.py"), ("ops", "random.py")}  # the place of the rule; keys are made by loaders


@pytest.mark.parametrize("values", [(3, 4), [[0, 1], [1, 0]], [0.5, 2], torch.Size([2, 3]), [True, False]])
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_constant_is_torchs_tensor(values, dtype) -> None:
    expected, made = torch.tensor(values, dtype=dtype), constant(values, torch.device("cpu"), dtype)
    assert made.dtype == expected.dtype
    assert torch.equal(made, expected)


def test_no_table_of_a_step_is_copied_while_the_host_waits() -> None:
    found = []
    for layer in LAYERS:
        folder = Path(ssl_med.__file__).parent / layer
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                waits = isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.tensor", "torch.as_tensor")
                if waits and any(keyword.arg == "device" for keyword in node.keywords):
                    found.append((layer, path.name))
    assert set(found) == LEFT


@pytest.mark.parametrize("space", [(24, 20), (1, 24, 20), (12, 16, 20)], ids=str)
@pytest.mark.parametrize("settings", [{}, {"largest": 3.5}, {"largest": 4, "windows": 50}, {"largest": 30}], ids=str)
def test_the_bounds_of_a_shuffle_are_known_beforehand(monkeypatch, space, settings) -> None:
    """Those that the host computes are those of what was drawn, and the shuffle with them is the same."""
    monkeypatch.setattr(shuffle, "compiled_for", lambda x: False)
    image = torch.randn(3, 1, *space, generator=torch.Generator().manual_seed(0))
    batch = {"image": image, "key": sample_keys(0, torch.arange(3))}
    transform, seen = LocalShuffle(probability=1.0, **settings), []
    original = shuffle.local_shuffle_

    def spy(volumes, keys, limits, windows, chosen, bounds=None):
        seen.append((bounds, (int(windows.max()), int(limits.prod(1).max()))))
        return original(volumes, keys, limits, windows, chosen)

    expected = transform(batch)["image"]
    monkeypatch.setattr("ssl_med.transforms.corruption.local_shuffle.local_shuffle_", spy)
    assert torch.equal(transform(batch)["image"], expected)
    assert seen[0][0] == seen[0][1]
