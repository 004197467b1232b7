"""Several tasks on one backbone: shared weights, each part logged, weights and balance as said."""

import pytest
import torch
from miniature import many, train

from ssl_med.backbones import UNetEncoder
from ssl_med.errors import UserError
from ssl_med.recipe import build, recipe
from ssl_med.tasks import Hybrid, Plan, Task

MAE = {"class_path": "ssl_med.tasks.MAE", "init_args": {"decoder_dim": 24, "decoder_depth": 1, "decoder_heads": 2}}
VIEWS = {
    "class_path": "ssl_med.transforms.PairedViews",
    "init_args": {"transforms": [{"class_path": "ssl_med.transforms.Flip"}]},
}
SIMCLR = {"class_path": "ssl_med.tasks.SimCLR", "init_args": {"hidden_dim": 16, "out_dim": 8, "views": VIEWS}}
PARTS = {"mae": MAE, "contrast": SIMCLR}
DINO = {
    "class_path": "ssl_med.tasks.DINO",
    "init_args": {"prototypes": 32, "hidden_dim": 24, "bottleneck_dim": 8, "momentum": 0.5, "freeze_last": 0.0},
}
GENESIS = {"class_path": "ssl_med.tasks.ModelsGenesis", "init_args": {"widths": [4, 8]}}


def test_parts_share_the_backbone_and_their_losses_add_up(tiny_vit, make_batch) -> None:
    task = Hybrid(tiny_vit(2), PARTS, {"mae": 3.0})
    assert task.tasks["mae"].backbone is task.tasks["contrast"].backbone is task.backbone
    assert len(task.tasks["contrast"].views.transforms) == 1  # nested recipes are built
    losses = task(make_batch((16, 16)), 0.0)
    assert {"mae/loss", "mae/constant_patches", "contrast/loss", "contrast/loss_over_chance"} <= set(losses)
    torch.testing.assert_close(losses["loss"], 3 * losses["mae/loss"] + losses["contrast/loss"])


def test_balanced_parts_pull_as_hard_as_their_weights_say(tiny_vit, make_batch) -> None:
    torch.manual_seed(0)
    task, batch = Hybrid(tiny_vit(2), PARTS, {"mae": 2.0}, balance=True), make_batch((16, 16))
    losses = task(batch, 0.0)
    last = task.backbone.layers()[-1]
    with torch.no_grad():
        unbalanced = task(batch, 0.0)  # without gradients there is nothing to balance
    torch.testing.assert_close(unbalanced["loss"], 2 * unbalanced["mae/loss"] + unbalanced["contrast/loss"])
    alone = {
        name: torch.cat([g.flatten() for g in torch.autograd.grad(losses[f"{name}/loss"], last, retain_graph=True)])
        for name in PARTS
    }
    mean = (alone["mae"].norm() + alone["contrast"].norm()) / 2
    expected = 2 * alone["mae"] * mean / alone["mae"].norm() + alone["contrast"] * mean / alone["contrast"].norm()
    total = torch.cat([g.flatten() for g in torch.autograd.grad(losses["loss"], last)])
    torch.testing.assert_close(total, expected, atol=1e-6, rtol=1e-4)


def test_balance_stays_within_bounds_where_a_decoder_hardly_uses_the_deepest_features(make_batch) -> None:
    """Genesis restores through the skip connections: its gradient at the bottom is a hundredth of a contrast's."""
    torch.manual_seed(0)
    task = Hybrid(UNetEncoder(2, 1, (4, 8, 16), blocks=1), {"genesis": GENESIS, "contrast": SIMCLR}, balance=True)
    batch = make_batch((16, 16))
    losses = task(batch, 0.0)
    last = task.backbone.layers()[-1]
    sizes = {
        name: sum(g.square().sum() for g in torch.autograd.grad(losses[f"{name}/loss"], last, retain_graph=True)).sqrt()
        for name in ("genesis", "contrast")
    }
    mean = (sizes["genesis"] + sizes["contrast"]) / 2
    assert mean / sizes["genesis"] > 10  # what would be asked for
    assert losses["genesis/factor"] == 10
    torch.testing.assert_close(losses["contrast/factor"], mean / sizes["contrast"])
    together = 10 * losses["genesis/loss"] + losses["contrast/factor"] * losses["contrast/loss"]
    torch.testing.assert_close(losses["loss"], together)


def test_a_part_without_a_gradient_leaves_the_others_as_they_are(tiny_vit, make_batch) -> None:
    """Region contrast where no image has a region: nothing to balance, and nothing for the mean."""
    torch.manual_seed(0)
    regions = {"class_path": "ssl_med.tasks.RegionContrast", "init_args": {"temperature": 0.5}}
    task = Hybrid(tiny_vit(2), {**PARTS, "region": regions}, {"mae": 2.0, "contrast": 5.0}, balance=True)
    batch = make_batch((16, 16))
    given = task._batch_for

    def blind(name: str, whole: dict) -> dict:
        return given(name, {**whole, "image": torch.zeros_like(whole["image"])} if name == "region" else whole)

    task._batch_for = blind
    losses, without = task(batch, 0.0), Hybrid(task.backbone, PARTS, {"mae": 2.0, "contrast": 5.0}, balance=True)
    assert losses["region/images_without_region"] == len(batch["image"])
    without.tasks.load_state_dict({n: v for n, v in task.tasks.state_dict().items() if not n.startswith("region")})
    alone = without(batch, 0.0)
    assert losses["region/factor"] == 1
    for part in PARTS:
        torch.testing.assert_close(losses[f"{part}/factor"], alone[f"{part}/factor"])
    torch.testing.assert_close(losses["loss"], alone["loss"] + losses["region/loss"])


def test_parts_of_one_kind_see_different_views(tiny_vit, make_batch) -> None:
    twins = Hybrid(tiny_vit(2), {"first": MAE, "second": MAE})
    seen = []
    for task in twins.tasks.values():
        task.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]["key"]))
    twins(make_batch((16, 16)), 0.0)
    assert not torch.equal(*seen)


def test_choices_of_the_parts_carry_their_place(tiny_vit) -> None:
    chosen = Hybrid.choose({"parts": PARTS}, Plan(100, 32, 10))
    assert chosen["parts.contrast.init_args.temperature"].value == 0.5


def test_recipe_round_trip_and_state(tiny_vit, make_batch) -> None:
    task, batch = Hybrid(tiny_vit(2), PARTS), make_batch((16, 16))
    twin = build(recipe(task), Task)
    twin.load_state_dict(task.state_dict())
    torch.testing.assert_close(twin(batch, 0.0)["loss"], task(batch, 0.0)["loss"])


def test_verdicts_carry_the_name_of_the_part(tiny_vit, make_batch) -> None:
    task = Hybrid(tiny_vit(2), PARTS).eval()
    with torch.no_grad():
        signs = {name: float(value) for name, value in task.vital_signs(make_batch((16, 16))).items()}
    masked = {"mae/masked_error", "mae/blank_error", "mae/constant_patches"}
    assert set(signs) == {"contrast/embedding_spread", "contrast/embedding_rank"} | masked
    assert task.verdict({**signs, "contrast/embedding_spread": 0.0}).startswith("contrast: the embedding")
    assert set(task.pictures(make_batch((16, 16)))) > {"mae: input", "contrast: first view"}


def test_wrong_parts_are_named(tiny_vit) -> None:
    with pytest.raises(ValueError, match="needs two tasks"):
        Hybrid(tiny_vit(2), {"mae": MAE})
    with pytest.raises(ValueError, match="no part 'may'; did you mean 'mae'"):
        Hybrid(tiny_vit(2), PARTS, {"may": 1.0})
    with pytest.raises(UserError, match=r"parts\.other: ssl_med\.backbones\.ViT is no pretext task"):
        Hybrid(tiny_vit(2), {**PARTS, "other": {"class_path": "ssl_med.backbones.ViT"}})
    with pytest.raises(UserError, match="mask_rtio"):
        Hybrid(tiny_vit(2), {**PARTS, "mae": {**MAE, "init_args": {"mask_rtio": 0.5}}})


@pytest.mark.parametrize("space", [(16, 24), (8, 8, 12)], ids=["2d", "3d"])
def test_mae_and_dino_train_together_and_the_student_is_exported(tiny_vit, space: tuple[int, ...]) -> None:
    task = Hybrid(tiny_vit(len(space)), {"mae": MAE, "distil": DINO}, {"mae": 0.5})
    batches = many(space, 4)
    losses = task(batches[0], 0.0)
    torch.testing.assert_close(losses["loss"], 0.5 * losses["mae/loss"] + losses["distil/loss"])
    teacher = task.tasks["distil"].teacher["backbone"]
    before, untrained = (module.patch_embed.proj.weight.clone() for module in (teacher, task.backbone))
    train(task, batches, 1e-2)
    assert not torch.equal(teacher.patch_embed.proj.weight, before)  # it follows
    exported = task.exports()
    assert exported == {"backbone": task.backbone}
    assert exported["backbone"] is not teacher
    assert not torch.equal(task.backbone.patch_embed.proj.weight, untrained)


@pytest.mark.parametrize("space", [(16, 24), (8, 8, 16)], ids=["2d", "3d"])
def test_genesis_and_contrast_train_together_and_the_decoder_is_kept(space: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    backbone = UNetEncoder(len(space), 1, (4, 8), blocks=1)
    task, batches = Hybrid(backbone, {"genesis": GENESIS, "contrast": SIMCLR}), many(space, 12)
    losses = train(task, batches, 1e-2)
    assert losses[-1] < losses[0]
    assert set(task.exports()) == {"backbone", "genesis_decoder"}
    assert task.exports()["backbone"] is backbone
