"""Models Genesis: the pair it makes, the error it minimises, and that it learns more than copying."""

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch
from stores import store_of, volumes

from finetune import Segment
from ssl_med.backbones import UNetEncoder, ViT
from ssl_med.exports import export, load_backbone, load_decoder
from ssl_med.ops.random import sample_keys
from ssl_med.recipe import build, recipe
from ssl_med.tasks import ModelsGenesis, PretextTask, Task
from ssl_med.transforms import Flip, IntensityCurve, Painting, SingleView
from ssl_med.verbs.finetune import arm_config

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
SPACES = {"2d": (32, 32), "3d": (16, 24, 24)}


def make_task(axes: int, **settings: object) -> ModelsGenesis:
    torch.manual_seed(0)
    return ModelsGenesis(UNetEncoder(axes, 1, (6, 12), blocks=1), **{"widths": [6, 12], **settings})


def shapes(count: int, space: tuple[int, ...], seed: int) -> dict:
    """Volumes of grey ellipsoids on a dark ground, in [0, 1]: what anatomy is to a network of this size."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.meshgrid(*[torch.linspace(-1, 1, size) for size in space], indexing="ij")
    image = torch.full((count, 1, *space), 0.1)
    for row in range(count):
        for grey in (0.35, 0.6, 0.85):
            centre, radius = (torch.rand(2, len(space), generator=generator) * torch.tensor([[1.0], [0.4]])).unbind()
            parts = zip(places, centre, radius, strict=True)
            inside = sum(((p - c + 0.5) / (r + 0.3)) ** 2 for p, c, r in parts) < 1
            image[row, 0][inside] = grey
    return {"image": image, "key": sample_keys(seed, torch.arange(count))}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_target_differs_from_the_image_by_the_flip_only(space, make_batch) -> None:
    batch, task = make_batch(space, count=12), make_task(len(space), unit=(-2.0, 4.0))
    image = ((batch["image"] + 2) / 6).clamp(0, 1)
    pair, axes = task.corrupt(batch), range(1, 1 + len(space))
    flips = [list(chosen) for count in range(len(space) + 1) for chosen in combinations(axes, count)]
    for target, original in zip(pair.target, image, strict=True):
        assert any(torch.allclose(target, original.flip(flip) if flip else original) for flip in flips)
    assert pair.corrupted.min() >= 0
    assert pair.corrupted.max() <= 1
    assert not torch.equal(pair.corrupted, pair.target)


def test_the_network_is_shown_the_values_that_fine_tuning_shows(make_batch) -> None:
    """Corruptions work in [0, 1]; a backbone trained on that would meet z-scores in fine-tuning."""
    task, seen = make_task(2, views=SingleView([]), corruptions=[Painting(unit=(0.0, 1.0))]), []
    batch = {**make_batch((32, 32), count=4)}
    batch["image"] = 50 * batch["image"] + 300
    task.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pair = task.corrupt(batch)
    task.restore(pair)
    same = pair.corrupted == pair.target
    inside = same & (pair.target > 0) & (pair.target < 1)
    assert inside.any()
    torch.testing.assert_close(seen[0][inside], batch["image"][inside], atol=1e-2, rtol=1e-4)
    assert not torch.allclose(seen[0][~same], batch["image"][~same], atol=1.0)


def test_faithful_never_flips_depth_and_draws_ten_thousand_windows(make_batch) -> None:
    batch = make_batch((8, 20, 20), count=40)
    for faithful, depth in ((True, False), (False, True)):
        task = make_task(3, faithful=faithful, unit=(-2.0, 4.0))
        target, image = task.corrupt(batch).target, ((batch["image"] + 2) / 6).clamp(0, 1)
        lying = [image.flip(axes) for axes in ([3], [4], [3, 4])] + [image]
        kept = torch.stack([(target - other).abs().flatten(1).amax(1) < 1e-6 for other in lying]).any(0)
        assert bool((~kept).any()) is depth
    shuffle = make_task(3, faithful=True).corruptions[0]
    assert (shuffle.windows, shuffle.faithful) == (10_000, True)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("padded", [False, True])
def test_errors_are_those_of_their_formulas(padded: bool, make_batch) -> None:
    batch = make_batch((16, 24, 24))
    if padded:
        batch["valid"] = torch.ones(4, 1, 16, 24, 24, dtype=torch.bool)
        batch["valid"][1:, :, 10:] = False
    task = make_task(3)
    losses, pair = task(batch, 0.0), task.corrupt(batch)
    counted = torch.ones_like(pair.target, dtype=torch.bool) if pair.valid is None else pair.valid
    target, corrupted = pair.target[counted].double(), pair.corrupted[counted].double()
    restored = task.restore(pair)[counted].double()
    expected = {
        "loss": ((restored - target) ** 2).mean(),
        "identity_mse": ((corrupted - target) ** 2).mean(),
        "constant_mse": target.var(correction=0),
        "changed_voxels": (corrupted != target).double().mean(),
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-9), name
    assert 0.3 < losses["changed_voxels"] <= 1


def test_padding_counts_nowhere(make_batch, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, task = make_batch((16, 24, 24)), make_task(3, views=SingleView([]), corruptions=[])
    batch["valid"] = torch.ones(4, 1, 16, 24, 24, dtype=torch.bool)
    batch["valid"][..., 12:] = False
    guess = torch.rand(4, 1, 16, 24, 24)
    monkeypatch.setattr(task, "restore", lambda pair: guess)
    before = task(batch, 0.0)
    for part in (guess, batch["image"]):
        part[..., 12:] = 7.0
    after = task(batch, 0.0)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert before["identity_mse"] == 0


@pytest.mark.parametrize(("axes", "kind"), [(2, "unet"), (3, "unet"), (3, "vit")])
def test_it_learns_more_than_copying_and_than_a_constant(axes: int, kind: str) -> None:
    """Held-out images: the error falls below that of the corrupted input and of the best single grey."""
    space = (24, 24) if axes == 2 else (12, 12, 12)
    torch.manual_seed(0)
    vit = ViT(axes, 4, embed_dim=24, depth=2, heads=2, taps=2)
    backbone = UNetEncoder(axes, 1, (4, 8, 16), blocks=1) if kind == "unet" else vit
    task = ModelsGenesis(backbone, widths=[4, 8, 16])
    optimiser, steps = torch.optim.AdamW(task.parameters(), lr=1e-2), 100
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        optimiser.zero_grad()
        task(shapes(4, space, seed=100 + step), step / steps)["loss"].backward()
        optimiser.step()
        task.after_step((step + 1) / steps)
    task.eval()
    signs = {name: value.item() for name, value in task.vital_signs(shapes(32, space, seed=1)).items()}
    assert signs["restoration_mse"] < 0.8 * signs["identity_mse"]
    assert signs["restoration_mse"] < 0.8 * signs["constant_mse"]
    assert task.verdict(signs) == ""


def test_verdict_speaks_after_the_warm_up_only() -> None:
    task = make_task(2)
    worse = {"restoration_mse": 0.2, "identity_mse": 0.1, "constant_mse": 0.3}
    assert task.verdict(worse) == ""
    task.after_step(0.2)
    assert "no better than copying the corrupted input" in task.verdict(worse)
    assert "(mean squared error 0.2000 against 0.1000)" in task.verdict(worse)
    assert task.verdict({**worse, "identity_mse": 0.4, "constant_mse": 0.1}) == ""
    task.after_step(0.5)
    assert "a constant grey" in task.verdict({**worse, "constant_mse": 0.05})
    assert task.verdict({**worse, "restoration_mse": 0.05}) == ""


def test_pictures_are_in_the_values_of_the_image(make_batch, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, task = make_batch((32, 32)), make_task(2, views=SingleView([]))
    batch["image"] = batch["image"] * 400 - 100
    monkeypatch.setattr(task, "restore", lambda pair: pair.target)
    pictures = task.pictures(batch)
    assert list(pictures) == ["target", "corrupted", "restored", "error"]
    middle = (pictures["target"] - batch["image"]).abs() < 0.1  # all but the clamped hundredth
    assert middle.float().mean() > 0.98
    assert pictures["error"].max() == 0


@pytest.mark.parametrize("kind", ["unet", "vit"])
def test_encoder_and_decoder_start_a_segmentation(kind: str, tmp_path: Path, tiny_vit, make_batch) -> None:
    torch.manual_seed(0)
    task = ModelsGenesis(UNetEncoder(3, 1, (6, 12), blocks=1) if kind == "unet" else tiny_vit(3), widths=[6, 12])
    batch = make_batch((8, 8, 12))
    export(task.exports(), tmp_path, {})
    torch.manual_seed(1)
    decoder = load_decoder(str(tmp_path))
    segment = Segment(load_backbone(str(tmp_path)), 3, [8, 8, 12], decoder=decoder)
    features = task.backbone(batch["image"])
    assert torch.equal(segment.decoder(features, batch["image"]), task.decoder(features, batch["image"]))
    assert segment.head.out_channels == 3
    assert segment.widths == [6, 12]
    untrained = load_decoder(str(tmp_path), weights=False)
    assert not torch.equal(untrained(features, batch["image"]), task.decoder(features, batch["image"]))
    segment(batch, 0.0)["loss"].backward()
    twin = build(recipe(segment), Task)
    twin.load_state_dict(segment.state_dict())
    encoder_only = Segment(load_backbone(str(tmp_path)), 3, [8, 8, 12], widths=[4, 8])
    assert torch.isfinite(encoder_only(batch, 0.0)["loss"])


def test_its_parts_can_be_chosen_in_a_config() -> None:
    views, parts = SingleView([Flip()]), [IntensityCurve(probability=0.5, unit=(0.0, 1.0)), Painting()]
    task = make_task(2, views=views, corruptions=parts, unit=(0.0, 1.0))
    twin = build(recipe(task), PretextTask)
    assert recipe(twin) == recipe(task)
    assert [type(part).__name__ for part in twin.corruptions] == ["IntensityCurve", "Painting"]
    assert recipe(make_task(2))["class_path"] == "ssl_med.tasks.ModelsGenesis"


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_first_losses_are_the_recorded_ones(space, make_batch) -> None:
    """A change of these numbers changes every trained model: record new ones only on purpose, and say so."""
    task, batch = make_task(len(space)), make_batch(space)
    optimiser, found = torch.optim.AdamW(task.parameters(), lr=1e-2), []
    for _ in range(3):
        loss = task(batch, 0.0)["loss"]
        found.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert found == pytest.approx(GOLDEN[f"models_genesis_{len(space)}d"], rel=1e-4)


def test_fine_tuning_takes_the_decoder_of_the_export(tmp_path: Path) -> None:
    """Both arms get the exported architecture, the scratch arm without its weights; classification has no decoder."""
    store = store_of(volumes(tmp_path / "scans"), tmp_path / "store").folder
    task = make_task(3)
    card = {"input": {"spatial_dims": 3, "channels": 1, "intensity": "auto", "crop": 16}}
    export(task.exports(), tmp_path / "export", card)
    base = {"task": {"class_path": "finetune.Segment", "init_args": {}}, "data": {"targets": "mask"}}
    for arm, weights in (("pretrained", True), ("scratch", False)):
        filled = arm_config(base, str(store), str(tmp_path / "export"), arm, None, 0)
        built = build(filled["task"], Task)
        state = task.decoder.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in built.decoder.state_dict().items()) is weights
    chosen = {**base, "task": {"class_path": "finetune.Segment", "init_args": {"decoder": None}}}
    for config in (chosen, {**base, "task": {"class_path": "finetune.Classify", "init_args": {}}}):
        filled = arm_config(config, str(store), str(tmp_path / "export"), "pretrained", None, 0)
        assert filled["task"]["init_args"].get("decoder") is None
