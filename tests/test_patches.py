import numpy as np
import pytest
import torch
from references import patches as reference

from ssl_med.ops.patches import grid_of, patch_centres, patchify, take, unpatchify

CASES = {
    "2d": ((6, 8), (3, 2)),
    "3d": ((4, 6, 8), (2, 3, 4)),
    "slab": ((4, 8, 8), (1, 4, 2)),
    "4d": ((2, 4, 2, 6), (1, 2, 2, 3)),
}


@pytest.mark.parametrize(("space", "patch"), CASES.values(), ids=CASES)
def test_order_is_that_of_explicit_loops(space: tuple[int, ...], patch: tuple[int, ...]) -> None:
    image = torch.arange(2 * 2 * np.prod(space)).reshape(2, 2, *space).float()
    assert np.array_equal(patchify(image, patch).numpy(), reference.patchify(image.numpy(), patch))


@pytest.mark.parametrize(("space", "patch"), CASES.values(), ids=CASES)
def test_unpatchify_is_the_inverse(space: tuple[int, ...], patch: tuple[int, ...]) -> None:
    image = torch.randn(3, 2, *space, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpatchify(patchify(image, patch), patch, grid_of(space, patch)), image)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_error_names_the_axis_and_the_sizes(axis: int) -> None:
    space = [8, 8, 8]
    space[axis] = 7
    with pytest.raises(ValueError, match=rf"{tuple(space)}.*axis {axis}".replace("(", r"\(").replace(")", r"\)")):
        patchify(torch.zeros(1, 1, *space), (4, 4, 4))


def test_other_rank_and_other_count_are_refused() -> None:
    with pytest.raises(ValueError, match="ranks differ"):
        grid_of((8, 8), (4, 4, 4))
    with pytest.raises(ValueError, match="5 tokens do not fill the grid"):
        unpatchify(torch.zeros(1, 5, 16), (4, 4), (2, 2))


def test_centres_are_in_the_order_of_the_tokens() -> None:
    """An image whose voxels hold their own patch index, cut into patches, gives the centres."""
    grid, patch = (2, 3, 4), (2, 1, 3)
    space = [g * p for g, p in zip(grid, patch, strict=True)]
    cells = torch.stack(
        torch.meshgrid(*[torch.arange(s) // p for s, p in zip(space, patch, strict=True)], indexing="ij")
    )
    tokens = patchify(cells[None].float(), patch).reshape(24, -1, 3)
    assert torch.equal(tokens[:, 0], patch_centres(grid))
    assert torch.equal(tokens[:, -1], patch_centres(grid))


def test_take_picks_rows_per_sample() -> None:
    tokens = torch.arange(12.0).reshape(2, 3, 2)
    picked = take(tokens, torch.tensor([[2, 0], [1, 1]]))
    assert picked.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
