"""Which patches a masked task hides: exact counts, and the law of each shape."""

import math

import pytest
import torch

from ssl_med.backbones import UNetEncoder
from ssl_med.errors import UserError
from ssl_med.ops.masking import hidden_blocks, tissue_order, tube_order, weighted_order
from ssl_med.ops.random import Draws, sample_keys
from ssl_med.tasks import MAE, MaskedConv, SimMIM


def draws(count: int) -> Draws:
    return Draws(sample_keys(3, torch.arange(count)))


@pytest.mark.parametrize("mask", ["uniform", "block", "tube", "saliency", "foreground"])
@pytest.mark.parametrize("space", [(16, 24), (8, 16, 16)])
def test_every_shape_hides_the_same_share_and_can_be_undone(mask, space, tiny_vit, make_batch) -> None:
    task, batch = MAE(tiny_vit(len(space)), mask=mask, decoder_dim=24, decoder_depth=1, decoder_heads=2), None
    batch = make_batch(space)
    hidden = task.hide(batch)
    count = math.prod(hidden.grid)
    expected = hidden.grid[0] * int(count // hidden.grid[0] * 0.25) if mask == "tube" else int(count * 0.25)
    assert hidden.visible == expected
    everything = torch.arange(count).expand(4, -1)
    assert torch.equal(hidden.order.gather(1, hidden.inverse), everything)
    assert torch.equal(hidden.order.sort(1).values, everything)
    assert torch.isfinite(task(batch, 0.0)["loss"])


def test_a_tube_is_hidden_in_every_slice(tiny_vit, make_batch) -> None:
    task = MAE(tiny_vit(3), mask="tube", decoder_dim=24, decoder_depth=1, decoder_heads=2)
    hidden = task.hide(make_batch((12, 16, 16)))
    seen = torch.zeros(4, 48, dtype=torch.bool).scatter(1, hidden.seen, True).view(4, 3, 16)
    assert torch.equal(seen[:, 0], seen[:, 1])
    assert torch.equal(seen[:, 0], seen[:, 2])
    assert not torch.equal(seen[0], seen[1])


def test_a_tube_counts_as_padding_only_where_all_of_it_is() -> None:
    last = torch.zeros(2, 3, 4, dtype=torch.bool)
    last[:, 2, :2] = True  # the last slice is padding in two tubes
    last[:, :, 3] = True
    order, _ = tube_order(draws(2), (3, 4), last.flatten(1))
    assert set(order[0, -3:].tolist()) == {3, 7, 11}


def test_blocks_hang_together_more_than_single_patches(tiny_vit, make_batch) -> None:
    batch = make_batch((64, 64))

    def borders(mask: str) -> int:
        task = MAE(tiny_vit(2), mask=mask, decoder_dim=24, decoder_depth=1, decoder_heads=2)
        hidden = task.hide(batch)
        seen = torch.zeros(4, 256).scatter(1, hidden.seen, 1.0).view(4, 16, 16)
        return int((seen.diff(dim=1) != 0).sum() + (seen.diff(dim=2) != 0).sum())

    assert borders("block") < 0.6 * borders("uniform")


def test_the_end_is_drawn_in_proportion_to_the_weights() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(20_000, -1)
    order, _ = weighted_order(draws(20_000), weight)
    share = order[:, -1].bincount(minlength=4) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.02, rtol=0)


def test_patches_of_weight_zero_are_hidden_last_but_before_nothing_else_is_left() -> None:
    weight, last = torch.tensor([[0.0, 1.0, 0.0, 5.0, 0.0]]), torch.tensor([[True, False, False, False, False]])
    order, _ = weighted_order(draws(1), weight, last)
    assert set(order[0, -3:-1].tolist()) == {1, 3}
    assert order[0, -1] == 0  # padding is hidden before everything
    assert set(order[0, :2].tolist()) == {2, 4}


@pytest.mark.parametrize(
    ("tissue", "ratio", "shown"),
    [(16, 0.75, 4), (32, 0.2, 26), (0, 0.75, 0), (56, 0.2, 45), (63, 0.75, 16), (5, 0.5, 3), (60, 0.5, 30)],
)
def test_the_share_of_the_tissue_is_hidden_and_no_more(tiny_vit, make_batch, tissue, ratio, shown) -> None:
    task = MAE(tiny_vit(2), mask="foreground", mask_ratio=ratio, decoder_dim=24, decoder_depth=1, decoder_heads=2)
    batch = make_batch((32, 32))
    patches = (torch.arange(64) < tissue).float().reshape(8, 8)  # the first are tissue
    batch["image"] = patches.repeat_interleave(4, 0).repeat_interleave(4, 1).expand(4, 1, 32, 32)
    hidden = task.hide(batch)
    assert hidden.unseen.shape[1] == 64 - int(64 * (1 - ratio))
    assert ((hidden.seen < tissue).sum(1) == shown).all()
    assert len({tuple(row.sort().values.tolist()) for row in hidden.seen}) > 1  # drawn for each image


def test_padding_is_hidden_before_tissue_and_air() -> None:
    tissue = torch.tensor([[True] * 4 + [False] * 4]).expand(50, -1)
    last = torch.tensor([[True, False] * 4]).expand(50, -1)  # two tokens of tissue and two of air are real
    order, inverse = tissue_order(draws(50), tissue, 0.5, last)
    assert torch.equal(order.gather(1, inverse), torch.arange(8).expand(50, -1))
    groups = [order[:, :1], order[:, 1:3], order[:, 3:4], order[:, 4:]]
    wanted = [{1, 3}, {5, 7}, {1, 3}, {0, 2, 4, 6}]
    assert [set(group.flatten().tolist()) for group in groups] == wanted


@pytest.mark.parametrize(("space", "block", "cell"), [((16, 32), (8, 8), (4, 4)), ((8, 8, 16), (4, 4, 8), (1, 1, 1))])
def test_whole_blocks_are_hidden(space, block, cell) -> None:
    field = hidden_blocks(draws(3), space, block, 0.5, cell)
    cells = [s // c for s, c in zip(space, cell, strict=True)]
    assert field.shape == (3, 1, *cells)
    assert field.flatten(1).float().mean(1).tolist() == [0.5] * 3
    pooled = field.float()
    for axis, (b, c) in enumerate(zip(block, cell, strict=True), 2):
        pooled = pooled.unflatten(axis, (-1, b // c)).mean(axis + 1)
    assert set(pooled.unique().tolist()) == {0.0, 1.0}


def test_a_block_that_does_not_fit_is_refused(tiny_vit, make_batch) -> None:
    with pytest.raises(UserError, match=r"mask_block \(6, 6\) must be a multiple of \(4, 4\) and divide"):
        SimMIM(tiny_vit(2), mask_block=6).hide(make_batch((24, 24)))
    with pytest.raises(UserError, match="divide the image"):
        MaskedConv(UNetEncoder(2, 1, (4, 8), blocks=1), mask_block=16).hide(make_batch((24, 24)))


@pytest.mark.parametrize("kind", [SimMIM, MaskedConv])
def test_only_hidden_voxels_count_and_only_seen_ones_are_looked_at(kind, tiny_vit, make_batch) -> None:
    """The loss must not change with the hidden input except through its target, nor with the target that is seen."""
    torch.manual_seed(0)
    backbone = tiny_vit(2) if kind is SimMIM else UNetEncoder(2, 1, (4, 8), blocks=1)
    task, batch = kind(backbone, mask_block=8), make_batch((16, 16))
    task.views.transforms = torch.nn.ModuleList()
    hidden = task.hide(task.views(batch)[0])  # a view has a key of its own
    where = task._voxels(hidden, batch) > 0 if kind is SimMIM else hidden
    image = batch["image"]
    other = {**batch, "image": torch.where(where, image + 5.0, image)}
    if kind is MaskedConv:
        torch.testing.assert_close(task.reconstruct(batch, hidden), task.reconstruct(other, hidden))
        expected = (task.reconstruct(batch, hidden) - image).square()[where].mean()
    else:
        torch.testing.assert_close(task.reconstruct(batch, hidden), task.reconstruct(other, hidden), atol=1e-5, rtol=0)
        expected = (task.reconstruct(batch, hidden) - image).abs()[where].mean()
    torch.testing.assert_close(task(batch, 0.0)["loss"], expected)
