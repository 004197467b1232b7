"""AutoModel loads our folders, and answers with our tokens."""

import pytest
import torch
from exports_of import distance, image_of, native
from transformers import AutoImageProcessor, AutoModel

from ssl_med.errors import UserError
from ssl_med.formats import convert

LAYOUTS = [
    ("ViTModel", {}, [16, 16]),
    ("ViTModel", {"positions": "learned", "grid": (4, 6), "patch": (4, 4), "mlp_ratio": 2.5}, [16, 24]),
    ("ViTModel", {"norm_eps": 1e-4, "patch": (4, 8)}, [16, 24]),
    ("Dinov2Model", {"layer_scale": 0.3}, [16, 16]),
    ("Dinov2WithRegistersModel", {"registers": 2}, [16, 16]),
    ("Dinov2WithRegistersModel", {"registers": 4, "layer_scale": 0.3, "positions": "none"}, [16, 16]),
]


@pytest.mark.parametrize(("kind", "changes", "crop"), LAYOUTS, ids=str)
def test_tokens_and_class_token_are_ours(tmp_path, tiny_vit, kind, changes, crop):
    vit = tiny_vit(2, **changes)
    folder = convert(native(vit, tmp_path / "native", crop), tmp_path / "hf", "transformers")
    model, loading = AutoModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    assert type(model).__name__ == kind
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    image = image_of(2, 1, crop)
    with torch.no_grad():
        found, encoded = model.eval()(pixel_values=image), vit.encode(vit.tokenize(image))
        assert distance(encoded, found.last_hidden_state) < 1e-5
        assert distance(encoded[:, 0], found.pooler_output) < 1e-5
        assert distance(vit(image).pooled, found.last_hidden_state[:, vit.prefix :].mean(1)) < 1e-5


def test_the_processor_crops_and_scales_8_bit_images(tmp_path, tiny_vit):
    import numpy as np

    vit = tiny_vit(2, in_channels=3)
    source = native(vit, tmp_path / "native", [16, 16], intensity="unit")
    folder = convert(source, tmp_path / "hf", "transformers")
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    picture = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    found = processor(picture, return_tensors="pt")["pixel_values"]
    wanted = torch.from_numpy(picture[2:18, 4:20].astype(np.float32) / 255).permute(2, 0, 1)[None]
    assert distance(wanted, found) < 1e-6


@pytest.mark.parametrize(
    ("axes", "changes", "reason"),
    [
        (3, {}, "are 2D, this one has 3 axes"),
        (2, {"class_token": False}, "always have a class token"),
        (2, {"positions": "rotary"}, "rotary"),
        (2, {"layer_scale": 0.1, "patch": (4, 2)}, "for a square"),
        (2, {"layer_scale": 0.1, "mlp_ratio": 2.5}, "whole mlp_ratio"),
    ],
)
def test_what_transformers_cannot_compute_is_refused(tmp_path, tiny_vit, axes, changes, reason):
    source = native(tiny_vit(axes, **changes), tmp_path / "native", [16] * axes)
    with pytest.raises(UserError, match=reason):
        convert(source, tmp_path / "hf", "transformers")
