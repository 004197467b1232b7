import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from references.mae import mae_loss
from torch import nn
from two_processes import check_two_equal_one

from ssl_med.backbones import UNetEncoder, ViT
from ssl_med.errors import UserError
from ssl_med.ops.patches import patchify, take, unpatchify
from ssl_med.ops.random import sample_keys
from ssl_med.tasks import MAE, MaskedConv, SimMIM
from ssl_med.tasks.mae import Hidden, MAEDecoder
from ssl_med.tasks.masked_modelling import patch_moments
from ssl_med.tasks.saliency import Gradient, SaliencyProvider, StoredSaliency
from ssl_med.transforms import SingleView

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
SPACES = {"2d": (8, 12), "3d": (8, 4, 12)}


@pytest.fixture
def tiny_mae(tiny_vit):
    def make(spatial_dims: int = 2, channels: int = 1, **changes) -> MAE:
        vit = tiny_vit(spatial_dims, in_channels=channels)
        torch.manual_seed(0)
        return MAE(vit, **{"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "mask_ratio": 0.5, **changes})

    return make


def padded(batch: dict) -> dict:
    """The batch with the end of its last axis marked as padding, another width for each sample."""
    valid = torch.ones(len(batch["image"]), 1, *batch["image"].shape[2:], dtype=torch.bool)
    for number in range(len(valid)):
        valid[number, ..., valid.shape[-1] - 3 - number :] = False
    return {**batch, "valid": valid}


@pytest.mark.parametrize(("space", "visible"), [((56, 56), 49), ((24, 24, 24), 54)])
def test_a_quarter_of_the_tokens_enters_the_encoder(tiny_mae, make_batch, space, visible: int) -> None:
    task, counts = tiny_mae(len(space), mask_ratio=0.75), []
    task.backbone.blocks[0].register_forward_pre_hook(lambda _, inputs: counts.append(inputs[0].shape[1]))
    task(make_batch(space, 1), 0.0)
    assert counts == [1 + visible]


def test_decoder_puts_tokens_back_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """With identities for layers and no positions, every place holds its own token or the mask token."""
    import ssl_med.tasks.mae as module

    decoder = MAEDecoder(6, 6, 6, 1, 2)
    decoder.embed = decoder.norm = nn.Identity()
    seen: list[torch.Tensor] = []
    decoder.blocks = nn.ModuleList([nn.Identity()])
    decoder.blocks[0].register_forward_hook(lambda _, __, out: seen.append(out))
    monkeypatch.setattr(module, "sincos", lambda centres, width: torch.zeros(1, centres.shape[1], width))
    order = torch.stack([torch.randperm(12, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    hidden = Hidden(order, order.argsort(1), 4, (3, 4))
    tokens = torch.arange(12.0)[None, :, None].expand(3, -1, 6)
    prefix = torch.full((3, 2, 6), -1.0)
    out = decoder(torch.cat([prefix, take(tokens, hidden.seen)], 1), hidden)
    assert torch.equal(seen[0][:, :2], prefix)
    places = seen[0][:, 2:]
    for sample in range(3):
        for number in range(12):
            kept = number in order[sample, :4]
            expected = tokens[sample, number] if kept else decoder.mask_token[0, 0]
            assert torch.equal(places[sample, number], expected)
    assert out.shape == (3, 8, 6)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_decoder_positions_are_those_of_the_target(tiny_mae, make_batch, space) -> None:
    """Swapping two hidden patches in ``unseen`` swaps the predictions: row, place and target go together."""
    task, batch = tiny_mae(len(space)), make_batch(space, 1)
    hidden = task.hide(batch)
    order = hidden.order.clone()
    order[:, -2:] = order[:, -2:].flip(1)
    swapped = Hidden(order, order.argsort(1), hidden.visible, hidden.grid)
    first, second = task.reconstruct(batch, hidden), task.reconstruct(batch, swapped)
    assert torch.allclose(first[:, -2:], second[:, -2:].flip(1), atol=1e-6)
    assert torch.allclose(first[:, :-2], second[:, :-2], atol=1e-6)
    assert not torch.allclose(first[:, -1], first[:, -2], atol=1e-4)


@pytest.mark.parametrize("space", [(8, 20), (4, 8, 20)], ids=["2d", "3d"])
def test_target_has_the_order_of_the_embedding(tiny_mae, make_batch, space) -> None:
    """Tokens made from voxels alone, on a grid of unequal sides, are the patches that the loss asks for."""
    task, batch = tiny_mae(len(space)), make_batch(space)
    vit, hidden = task.backbone, task.hide(batch)
    vit.positions = "none"
    target, _ = task._targets(batch, hidden)
    assert torch.allclose(
        take(vit.tokenize(batch["image"]).value, hidden.unseen), vit.patch_embed.proj(target), atol=1e-6
    )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("padding", [False, True])
def test_loss_is_that_of_explicit_loops(tiny_mae, make_batch, space, norm_pix: bool, padding: bool) -> None:
    task, batch = tiny_mae(len(space), channels=2, norm_pix=norm_pix), make_batch(space, channels=2)
    batch = padded(batch) if padding else batch
    view = task.views(batch)[0]
    hidden = task.hide(view)
    prediction = task.reconstruct(view, hidden)
    valid = batch["valid"].numpy() if padding else None
    expected = mae_loss(
        batch["image"].numpy(), prediction.detach().numpy(), hidden.unseen.numpy(), task.backbone.patch, valid, norm_pix
    )
    assert task(batch, 0.0)["loss"].item() == pytest.approx(expected, rel=1e-9)


def test_visible_patches_of_the_target_do_not_count(tiny_mae, make_batch) -> None:
    task, batch = tiny_mae(), make_batch((8, 12))
    hidden = task.hide(batch)
    prediction = task.reconstruct(batch, hidden)
    patches = patchify(batch["image"], (4, 4))
    for places, same in ((hidden.seen, True), (hidden.unseen, False)):
        changed = patches.scatter_add(1, places[..., None].expand(-1, -1, 16), torch.randn(4, places.shape[1], 16))
        other = {**batch, "image": unpatchify(changed, (4, 4), hidden.grid)}
        equal = torch.equal(task.error(other, hidden, prediction)[0], task.error(batch, hidden, prediction)[0])
        assert equal is same


def test_hidden_patches_do_not_reach_the_prediction(tiny_mae, make_batch) -> None:
    task, batch = tiny_mae(), make_batch((8, 12))
    hidden = task.hide(batch)
    image = batch["image"].clone().requires_grad_()
    task.reconstruct({**batch, "image": image}, hidden).square().sum().backward()
    reach = patchify(image.grad, (4, 4)).abs().amax(-1)
    assert (reach.gather(1, hidden.unseen) == 0).all()
    assert (reach.gather(1, hidden.seen) > 0).all()


def test_moments_are_those_of_the_real_voxels() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = 5 + 3 * torch.randn(2, 3, 16, generator=generator)
    weight = (torch.rand(2, 3, 16, generator=generator) > 0.4).float()
    weight[0, 0], weight[0, 1] = 0, torch.eye(16)[0]
    mean, variance = patch_moments(patches, weight)
    standard = (patches - mean) / variance.clamp(min=1e-12).sqrt()
    for sample, number in ((0, 2), (1, 0), (1, 1), (1, 2)):
        kept = standard[sample, number][weight[sample, number] > 0]
        assert float(kept.mean()) == pytest.approx(0, abs=1e-5)
        assert float(kept.var()) == pytest.approx(1, abs=1e-4)
    assert variance[0, 0] == variance[0, 1] == mean[0, 0] == 0
    assert float(mean[0, 1]) == pytest.approx(float(patches[0, 1, 0]))


def test_loss_of_no_prediction_is_the_variance_of_the_target(tiny_mae, make_batch) -> None:
    """Predicting nothing costs (n - 1) / n per voxel when targets are standardised by the unbiased variance."""
    task, batch = tiny_mae(), make_batch((16, 16), 8)
    hidden = task.hide(batch)
    nothing = torch.zeros(8, hidden.unseen.shape[1], 16)
    assert float(task.error(batch, hidden, nothing)[0]) == pytest.approx(15 / 16, rel=1e-3)


@pytest.mark.parametrize("space", [(32, 32), (16, 16, 16)], ids=["2d", "3d"])
def test_loss_of_the_untrained_task(tiny_mae, make_batch, space) -> None:
    """One for the target, and 2 d / (d + p) for the prediction: unit tokens of width d through Xavier's p outputs."""
    task = tiny_mae(len(space), decoder_dim=24)
    voxels = 4 ** len(space)
    assert task(make_batch(space, 8), 0.0)["loss"].item() == pytest.approx(1 + 48 / (24 + voxels), rel=0.15)


def test_constant_patches_are_counted_and_harmless(tiny_mae, make_batch) -> None:
    task, batch = tiny_mae(mask_ratio=0.75), make_batch((8, 8), 2)
    batch["image"][0] = -3.0
    batch["image"].requires_grad_()
    losses = task(batch, 0.0)
    losses["loss"].backward()
    assert float(losses["constant_patches"]) == 0.5
    assert torch.isfinite(losses["loss"])
    assert all(torch.isfinite(p.grad).all() for p in task.parameters())


def test_padding_is_hidden_first_and_never_predicted(tiny_mae, make_batch) -> None:
    task, batch = tiny_mae(mask_ratio=0.5), make_batch((8, 16), 3)
    valid = torch.ones(3, 1, 8, 16, dtype=torch.bool)
    valid[..., 8:] = False  # half the patches
    batch["valid"] = valid
    view = task.views(batch)[0]
    hidden = task.hide(view)
    assert (hidden.unseen % 4 >= 2).all()
    losses = task(batch, 0.0)
    assert losses["loss"].item() == 0  # nothing real is hidden
    assert float(losses["constant_patches"]) == 0


def test_voxels_in_the_padding_do_not_count(tiny_mae, make_batch) -> None:
    task, batch = tiny_mae(mask_ratio=0.75), padded(make_batch((8, 12)))
    view = task.views(batch)[0]
    hidden = task.hide(view)
    prediction = task.reconstruct(view, hidden)
    changed = {**view, "image": torch.where(view["valid"], view["image"], 77.0)}
    assert torch.equal(task.error(view, hidden, prediction)[0], task.error(changed, hidden, prediction)[0])


@pytest.mark.usefixtures("double")
def test_a_sample_has_the_same_loss_in_any_batch(tiny_mae, make_batch) -> None:
    task, batch = tiny_mae(), make_batch((8, 12), 4)
    rows = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(4)]
    alone = [task(row, 0.0)["loss"].item() for row in rows]
    assert task(batch, 0.0)["loss"].item() == pytest.approx(float(np.mean(alone)), rel=1e-9)
    assert len(set(alone)) == 4


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("norm_pix", [True, False])
def test_pictures_show_what_was_seen(tiny_mae, make_batch, space, norm_pix: bool) -> None:
    task, batch = tiny_mae(len(space), norm_pix=norm_pix), make_batch(space)
    pictures = task.pictures(batch)
    patch = task.backbone.patch
    hidden = task.hide(task.views(batch)[0])
    cut = {name: patchify(picture, patch) for name, picture in pictures.items()}
    assert list(pictures) == ["input", "masked", "reconstruction", "error"]
    assert torch.equal(pictures["input"], batch["image"])
    for name in ("masked", "reconstruction"):
        assert torch.equal(take(cut[name], hidden.seen), take(cut["input"], hidden.seen))
    assert (take(cut["masked"], hidden.unseen) == batch["image"].min()).all()
    assert (take(cut["error"], hidden.seen) == 0).all()
    assert (take(cut["error"], hidden.unseen).amax(-1) > 0).all()


def test_picture_of_a_perfect_prediction_is_the_image(tiny_mae, make_batch, monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = tiny_mae(), make_batch((8, 12))

    def perfect(view: dict, hidden: Hidden) -> torch.Tensor:
        target = take(patchify(view["image"], (4, 4)), hidden.unseen)
        return (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()

    monkeypatch.setattr(task, "reconstruct", perfect)
    assert torch.allclose(task.pictures(batch)["reconstruction"], batch["image"], atol=1e-5)
    assert task(batch, 0.0)["loss"].item() == pytest.approx(0, abs=1e-9)


def test_ratio_outside_its_range_is_refused(tiny_mae) -> None:
    with pytest.raises(ValueError, match="mask_ratio must be"):
        tiny_mae(mask_ratio=1.0)


def test_image_that_is_no_multiple_of_the_patch_is_refused(tiny_mae, make_batch) -> None:
    with pytest.raises(ValueError, match=r"\(8, 10\) is not divisible by patch \(4, 4\) along axis 1"):
        tiny_mae()(make_batch((8, 10)), 0.0)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_first_losses_are_the_recorded_ones(tiny_mae, make_batch, space) -> None:
    """A change of these numbers changes every trained model: record new ones only on purpose, and say so."""
    task, batch = tiny_mae(len(space)), make_batch(space)
    optimiser, found = torch.optim.AdamW(task.parameters(), lr=1e-2), []
    for _ in range(3):
        loss = task(batch, 0.0)["loss"]
        found.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert found == pytest.approx(GOLDEN[f"mae_{len(space)}d"], rel=1e-4)


def test_a_crop_of_one_patch_is_refused(tiny_vit, make_batch):
    with pytest.raises(UserError, match="MAE hides nothing: 1 patches"):
        MAE(tiny_vit(2), decoder_dim=16, decoder_depth=1, decoder_heads=2)(make_batch((4, 4)), 0.0)


# ---- two processes equal one


def shared(cls: type) -> tuple[nn.Module, dict]:
    """A masked-image task and four images of which the last two are padding for the most part."""
    torch.manual_seed(0)
    image = torch.randn(4, 1, 16, 16)
    batch = padded({"image": image, "key": sample_keys(0, torch.arange(4))})
    batch["valid"][2:, ..., 5:] = False
    image[0] = 0.5  # constant patches on one of the processes only
    if cls is MaskedConv:
        return MaskedConv(UNetEncoder(2, 1, (8, 16), blocks=1), SingleView([]), mask_block=4, widths=(8, 8)), batch
    vit = ViT(2, 4, embed_dim=24, depth=1, heads=2, taps=1)
    if cls is SimMIM:
        return SimMIM(vit, SingleView([]), mask_block=4), batch
    return MAE(vit, mask_ratio=0.5, decoder_dim=16, decoder_depth=1, decoder_heads=2), batch


@pytest.mark.parametrize("cls", [MAE, SimMIM, MaskedConv])
def test_two_processes_equal_one_on_padded_images(cls: type, tmp_path: Path) -> None:
    check_two_equal_one(partial(shared, cls), tmp_path)


def test_verdict_names_a_prediction_that_is_worse_than_none(tiny_mae, make_batch) -> None:
    torch.manual_seed(0)
    task = tiny_mae(2)
    signs = {name: float(value) for name, value in task.vital_signs(make_batch((16, 16))).items()}
    voxels = task.backbone.patch_embed.proj.in_features
    assert signs["blank_error"] == pytest.approx(1 - 1 / voxels, abs=1e-3)  # the variance is the unbiased one
    task.after_step(0.05)
    assert task.verdict({"masked_error": 9.0, "blank_error": 1.0}) == ""  # still warming up
    task.after_step(0.2)
    assert task.verdict({"masked_error": 2.0, "blank_error": 1.0}) == ""  # an untrained decoder says too much
    assert "learner.lr" in task.verdict({"masked_error": 3.2, "blank_error": 1.0})
    task.after_step(0.6)
    assert "9.000" in task.verdict({"masked_error": 9.0, "blank_error": 1.0})
    for error, stuck in ((1.2, False), (1.1, False), (1.09, True), (1.0, False), (1.0, True), (0.99, False)):
        said = task.verdict({"masked_error": error, "blank_error": 1.0})
        assert ("predicting nothing" in said) == stuck  # no better than nothing, and not on its way either


@pytest.mark.parametrize("cls", [MAE, SimMIM, MaskedConv])
def test_signs_stand_beside_those_of_predicting_nothing(cls: type) -> None:
    """Shared by all three; images 0 to 3 are: constant, a pattern, and two of which the end is padding."""
    task, batch = shared(cls)
    signs = {name: float(value) for name, value in task.eval().vital_signs(batch).items()}
    assert set(signs) == {"masked_error", "blank_error", "constant_patches"}
    assert signs["masked_error"] == pytest.approx(task(batch, 0.0)["loss"].item(), rel=1e-6)
    whole = {name: value for name, value in batch.items() if name != "valid"}
    assert float(task.vital_signs(whole)["constant_patches"]) == 0.25  # the first of four images
    if cls is not MAE:  # raw voxels: nothing is 0
        hidden = task.hide(task.views(batch)[0])
        where = (task._voxels(hidden, batch) > 0 if cls is SimMIM else hidden) & batch["valid"]
        voxels = batch["image"][where]
        expected = voxels.abs().mean() if cls is SimMIM else voxels.square().mean()
        assert signs["blank_error"] == pytest.approx(float(expected), rel=1e-5)
    task.after_step(0.6)
    assert task.verdict(signs | {"masked_error": 1.2 * signs["blank_error"]}) == ""
    assert "learner.lr" in task.verdict(signs | {"masked_error": 2.0 * signs["blank_error"]})


def test_constant_maps_are_counted_and_hide_any_patch(tiny_mae, make_batch) -> None:
    task, batch = tiny_mae(mask="saliency", saliency=StoredSaliency()), make_batch((16, 16))
    batch["saliency"] = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert float(task(batch, 0.0)["degenerate_maps"]) == 0
    batch["saliency"][1:] = 0.0
    batch["saliency"][3] = 0.5
    assert float(task(batch, 0.0)["degenerate_maps"]) == 3
    assert "degenerate_maps" not in tiny_mae()(batch, 0.0)


@pytest.mark.parametrize("saliency", [None, Gradient()], ids=["stored", "gradient"])
def test_salient_patches_are_hidden_more_often(tiny_mae, make_batch, saliency: SaliencyProvider | None) -> None:
    """Through the task: a map in which 4 of 16 patches weigh ten times as much, and an image with a dot in each."""
    task, batch = tiny_mae(mask="saliency", saliency=saliency), make_batch((16, 16), 400)
    salient = torch.zeros(16, dtype=torch.bool)
    salient[[5, 6, 9, 10]] = True  # the middle of 4 x 4
    middle = unpatchify(salient[None, :, None].float().expand(400, 16, 16), (4, 4), (4, 4))
    batch["saliency"] = 0.1 + 0.9 * middle
    inside = torch.tensor([False, True, True, False] * 4)  # the two middle voxels of each patch along an axis
    batch["image"] = 0.02 * batch["image"] + middle * (inside[:, None] & inside)
    hidden = task.hide(task.views(batch)[0])
    times = torch.bincount(hidden.unseen.flatten(), minlength=16) / 400
    assert times.sum() == pytest.approx(8)
    assert times[salient].min() > 0.65 > times[~salient].max()
