import math

import numpy as np
import pytest
import torch
from references import patches as reference

from ssl_med.ops.patches import patch_centres
from ssl_med.ops.positions import rotary_angles, rotate, sincos


def test_sincos_is_the_table_of_transformers_with_the_axes_swapped() -> None:
    """Transformers' ViTMAE follows the official code, which writes the last axis first."""
    from transformers.models.vit_mae.configuration_vit_mae import ViTMAEConfig
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

    config = ViTMAEConfig(hidden_size=32, num_attention_heads=2, image_size=20, patch_size=4)
    embeddings = ViTMAEEmbeddings(config)
    embeddings.initialize_weights()
    theirs = embeddings.position_embeddings[0, 1:].detach().numpy()
    swapped = np.concatenate([theirs[:, 16:], theirs[:, :16]], 1)
    assert np.allclose(sincos(patch_centres((5, 5)), 32).numpy(), swapped, atol=1e-6)


@pytest.mark.parametrize(("grid", "width"), [((3, 4), 16), ((2, 3, 4), 24), ((2, 3, 4), 26), ((2, 2, 3, 2), 16)])
def test_sincos_is_that_of_explicit_loops(grid: tuple[int, ...], width: int) -> None:
    assert np.allclose(sincos(patch_centres(grid), width).numpy(), reference.sincos(grid, width), atol=1e-6)


def test_sincos_needs_room_for_every_axis() -> None:
    with pytest.raises(ValueError, match="width of at least 6, got 5"):
        sincos(patch_centres((2, 2, 2)), 5)


def turned(vector: torch.Tensor, place: list[float], temperature: float = 100.0) -> torch.Tensor:
    angles = rotary_angles(torch.tensor([[place]]), vector.shape[-1], temperature)
    return rotate(vector[None, None, None], angles)[0, 0, 0]


@pytest.mark.parametrize("axes", [2, 3])
def test_rotary_products_depend_on_the_offset_only(axes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 14, generator=generator)
    here, there = [1.0, 4.0, 2.0][:axes], [3.0, 0.0, 5.0][:axes]
    product = turned(query, here) @ turned(key, there)
    for shift in ([2.0, -1.0, 7.0], [0.5, 0.25, -3.0]):
        moved = [[p + s for p, s in zip(place, shift, strict=False)] for place in (here, there)]
        assert torch.allclose(turned(query, moved[0]) @ turned(key, moved[1]), product, atol=1e-5)
    for axis in range(axes):  # every axis matters
        other = [p + (i == axis) for i, p in enumerate(there)]
        assert (turned(query, here) @ turned(key, other) - product).abs() > 1e-3


def test_rotary_angles_by_hand() -> None:
    """Two axes, heads of 8: each axis turns two pairs, with rates 1 and 100 ** -0.5 = 0.1."""
    angles = rotary_angles(torch.tensor([[3.0, 5.0]]), 8)
    assert torch.allclose(angles, torch.tensor([[3.0, 0.3, 5.0, 0.5]]))
    quarter = rotate(torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2), torch.tensor([[[math.pi / 2]]]))
    assert torch.allclose(quarter.flatten(), torch.tensor([0.0, 1.0]), atol=1e-6)


def test_left_over_pairs_do_not_turn() -> None:
    angles = rotary_angles(torch.tensor([[3.0, 5.0, 7.0]]), 14)  # 7 pairs: two per axis and one left
    assert angles.shape == (1, 7)
    assert float(angles[0, -1]) == 0


def test_rotary_needs_room_for_every_axis() -> None:
    with pytest.raises(ValueError, match="heads of at least 6 channels, got 4"):
        rotary_angles(torch.zeros(1, 3), 4)
