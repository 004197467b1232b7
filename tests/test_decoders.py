from itertools import pairwise

import pytest
import torch

from ssl_med.backbones import Backbone, UNetEncoder
from ssl_med.backbones.unet import ResidualBlock
from ssl_med.decoders import PyramidDecoder, assign_maps, pyramid_strides
from ssl_med.types import Features


def test_levels_of_an_anisotropic_patch() -> None:
    """All axes are halved together; the short one is there first."""
    levels = [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16)]
    assert pyramid_strides([(4, 16, 16)]) == levels
    assert pyramid_strides([(4, 16, 16)] * 4) == levels


def test_levels_pass_through_every_map() -> None:
    assert pyramid_strides([(1, 1), (1, 4), (4, 4)]) == [(1, 1), (1, 2), (1, 4), (2, 4), (4, 4)]


@pytest.mark.parametrize("coarsest", [(16, 16), (8, 8, 8), (4, 16, 16), (1, 8, 8), (2, 4), (1, 1)])
def test_levels_go_from_one_to_the_coarsest_by_factors_of_one_or_two(coarsest: tuple[int, ...]) -> None:
    levels = pyramid_strides([coarsest])
    assert levels[0] == (1,) * len(coarsest)
    assert levels[-1] == coarsest
    for fine, coarse in pairwise(levels):
        factors = [b / a for a, b in zip(fine, coarse, strict=True)]
        assert set(factors) <= {1, 2}
        assert 2 in factors


def test_strides_that_are_no_power_of_two_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(8, 6\) must be powers of two"):
        pyramid_strides([(8, 6)])


def test_maps_of_a_vit_go_to_the_coarse_levels_in_order_of_depth() -> None:
    levels = pyramid_strides([(16, 16)])
    assert assign_maps([(16, 16)] * 4, levels) == {4: 3, 3: 2, 2: 1, 1: 0}
    assert assign_maps([(4, 4)] * 4, pyramid_strides([(4, 4)])) == {2: 3, 1: 2, 0: 1}


def test_maps_of_a_pyramid_go_to_their_own_strides() -> None:
    assert assign_maps([(2, 2), (4, 4), (8, 8)], pyramid_strides([(8, 8)])) == {1: 0, 2: 1, 3: 2}


def vit_16(tiny_vit) -> tuple[Backbone, tuple[int, ...]]:
    return tiny_vit(2, patch=16, depth=4, taps=4), (32, 48)


def vit_8(tiny_vit) -> tuple[Backbone, tuple[int, ...]]:
    return tiny_vit(3, patch=8, depth=4, taps=4), (16, 8, 24)


def vit_4(tiny_vit) -> tuple[Backbone, tuple[int, ...]]:
    return tiny_vit(3, patch=4, depth=4, taps=4), (8, 8, 12)


def vit_slab(tiny_vit) -> tuple[Backbone, tuple[int, ...]]:
    return tiny_vit(3, patch=(4, 16, 16), depth=4, taps=4), (8, 32, 16)


def pyramid(tiny_vit) -> tuple[Backbone, tuple[int, ...]]:
    return UNetEncoder(2, 1, (4, 8, 8), blocks=1), (16, 24)


def pyramid_slab(tiny_vit) -> tuple[Backbone, tuple[int, ...]]:
    pooling = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]]
    return UNetEncoder(3, 1, (4, 8, 8, 8), blocks=1, pooling=pooling), (4, 16, 16)


def pyramid_steps_of_four(tiny_vit) -> tuple[Backbone, tuple[int, ...]]:
    return UNetEncoder(2, 1, (4, 8), blocks=1, pooling=[[4, 4], [2, 2]]), (16, 24)


def pyramid_crossed(tiny_vit) -> tuple[Backbone, tuple[int, ...]]:
    """A map of stride (1, 4), which plain halving from (4, 4) would not meet."""
    return UNetEncoder(2, 1, (4, 8, 8), blocks=1, pooling=[[1, 1], [1, 4], [4, 1]]), (16, 24)


CASES = [vit_16, vit_8, vit_4, vit_slab, pyramid, pyramid_slab, pyramid_steps_of_four, pyramid_crossed]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_backbone_comes_back_to_full_resolution(tiny_vit, case) -> None:
    torch.manual_seed(0)
    backbone, space = case(tiny_vit)
    decoder = PyramidDecoder.for_backbone(backbone, (4, 6, 8))
    image = torch.randn(2, 1, *space)
    out = decoder(backbone(image), image)
    assert out.shape == (2, 4, *space)
    assert out.shape[1] == decoder.out_channels
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_map_and_the_image_matter(tiny_vit, case) -> None:
    torch.manual_seed(0)
    backbone, space = case(tiny_vit)
    decoder = PyramidDecoder.for_backbone(backbone, (4, 6, 8))
    image = torch.randn(1, 1, *space, requires_grad=True)
    features = backbone(image.detach())
    maps = [m.detach().requires_grad_() for m in features.maps]
    out = decoder(Features(features.pooled, maps), image)
    (out * torch.randn_like(out)).sum().backward()
    assert image.grad.abs().max() > 0
    if case is not vit_4:  # patches of 4 voxels make three levels: the first of four maps has no place
        assert sorted(decoder.source.values()) == list(range(len(maps)))
    for index in decoder.source.values():
        assert maps[index].grad.abs().max() > 0


def test_output_stands_where_the_cell_is() -> None:
    """A change of one cell changes the output around it and, without norms, nowhere far away."""
    torch.manual_seed(0)
    decoder = PyramidDecoder(3, 1, [24], [(2, 4, 4)], (4, 4, 4))
    for block in [m for m in decoder.modules() if isinstance(m, ResidualBlock)]:
        block.norm1, block.norm2 = torch.nn.Identity(), torch.nn.Identity()  # norms look at the whole image
    image, field = torch.randn(1, 1, 16, 32, 64), torch.zeros(1, 24, 8, 8, 16)
    changed = field.clone()
    changed[0, :, 2, 5, 11] = 9.0
    with torch.no_grad():
        first, second = (decoder(Features(torch.zeros(1, 24), [f]), image) for f in (field, changed))
    change = (first - second).abs().sum((0, 1))
    for axis, (cell, size) in enumerate([(2, 2), (5, 4), (11, 4)]):
        profile = change.sum([i for i in range(3) if i != axis])
        assert cell * size <= int(profile.argmax()) < (cell + 1) * size
        assert (profile == 0).any()
