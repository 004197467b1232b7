"""DINO: bookkeeping of views, schedules, the frozen start, the teacher, hidden patches, signs of collapse, training."""

import copy
import json
import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from two_processes import leave

from ssl_med.backbones import UNetEncoder, ViT
from ssl_med.backbones.packed import encode_packed
from ssl_med.errors import UserError
from ssl_med.ops.centring import koleo
from ssl_med.ops.collapse import feature_spread
from ssl_med.ops.filters import gaussian_blur
from ssl_med.ops.random import sample_keys
from ssl_med.optim import clip_each
from ssl_med.tasks import DINO, Plan
from ssl_med.tasks.dino import join
from ssl_med.transforms import GaussianNoise, MultiCrop, PairedViews, SingleView
from ssl_med.types import Batch

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
SPACES = {"2d": (16, 24), "3d": (8, 8, 12)}


def tiny(space: int = 2, backbone=None, **changes) -> DINO:
    torch.manual_seed(0)
    backbone = backbone or ViT(space, 4, embed_dim=24, depth=2, heads=2, taps=1)
    settings = {"prototypes": 32, "hidden_dim": 24, "bottleneck_dim": 32, "momentum": 0.9, "freeze_last": 0.1}
    return DINO(backbone, **{**settings, **changes})


def step(task: DINO, batch: Batch, progress: float, lr: float = 1e-3) -> Tensor:
    optimiser = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=lr)
    loss = task(batch, progress)["loss"]
    loss.backward()
    optimiser.step()
    task.after_step(progress)
    return loss.detach()


# ---- views and terms


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_student_sees_all_views_and_teacher_the_global_ones(make_batch, count: int) -> None:
    """Defect 13: batches of every size; one forward for each size of crop."""
    task, seen = tiny(), {"student": [], "teacher": []}
    task.backbone.patch_embed.register_forward_pre_hook(lambda _, x: seen["student"].append(tuple(x[0].shape)))
    task.teacher["backbone"].patch_embed.register_forward_pre_hook(
        lambda _, x: seen["teacher"].append(tuple(x[0].shape))
    )
    rows: list[int] = []
    task.head.register_forward_pre_hook(lambda _, x: rows.append(len(x[0])))
    task(make_batch((16, 24), count), 0.5)
    assert seen["student"] == [(2 * count, 1, 16, 24), (8 * count, 1, 8, 12)]
    assert seen["teacher"] == [(2 * count, 1, 16, 24)]
    assert rows == [10 * count]


@pytest.mark.usefixtures("double")
def test_the_loss_is_the_mean_of_18_terms(make_batch) -> None:
    """Written anew, view by view, pair by pair."""
    task, batch = tiny(), make_batch((16, 24), 3)
    views = task.views(batch)
    assert len(views) == 10
    probability, log_share = [], []
    with torch.no_grad():
        for view in views:
            encoded = task.backbone.encode(task.backbone.tokenize(view["image"], view["spacing"]))
            log_share.append((task.head(encoded[:, 0]) / 0.1).log_softmax(-1))
        for view in views[:2]:
            teacher = task.teacher["backbone"]
            encoded = teacher.encode(teacher.tokenize(view["image"], view["spacing"]))
            probability.append((task.teacher["head"](encoded[:, 0]) / 0.04).softmax(-1))
    terms = [-(p * q).sum(-1).mean() for i, p in enumerate(probability) for j, q in enumerate(log_share) if i != j]
    assert len(terms) == 18
    torch.testing.assert_close(task(batch, 0.5)["loss"].detach(), torch.stack(terms).mean(), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("double")
def test_uniform_teacher_and_student_give_ln_k(make_batch) -> None:
    task = tiny()
    for head in (task.head, task.teacher["head"]):
        torch.nn.init.zeros_(head.mlp[-1].weight)
    assert float(task(make_batch((16, 24)), 0.5)["loss"].detach()) == pytest.approx(math.log(32), abs=1e-9)


def test_other_views_are_taken_and_a_single_one_is_refused(make_batch) -> None:
    assert tiny(views=PairedViews([GaussianNoise()]))(make_batch((16, 24)), 0.5)["loss"].isfinite()
    with pytest.raises(UserError, match="two global views"):
        tiny(views=SingleView([]))(make_batch((16, 24)), 0.5)


def test_koleo_is_of_the_students_features_of_each_global_view(make_batch) -> None:
    """Defect: KoLeo on the head's logits."""
    task, seen = tiny(koleo=0.1), {}
    task.head.register_forward_pre_hook(lambda _, inputs: seen.update(features=inputs[0]))
    task.head.register_forward_hook(lambda _, __, out: seen.update(logits=out))
    found = task(make_batch((16, 24)), 0.5)["koleo"]
    of = {name: koleo(rows[:4]) + koleo(rows[4:8]) for name, rows in seen.items()}  # global views come first
    torch.testing.assert_close(found, of["features"])
    assert not torch.isclose(found, of["logits"], rtol=0.01)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("own_head", [True, False])
def test_signs_of_the_hidden_patches_stand_beside_ln_k(make_batch, own_head: bool) -> None:
    task, batch = tiny(ibot=1.0, ibot_head=own_head).eval(), make_batch((16, 24))
    with torch.no_grad():
        signs, loss = task.vital_signs(batch), task(batch, 0.0)["ibot"]
    assert float(signs["ibot_per_patch"]) == pytest.approx(2 * float(loss), rel=1e-9)  # half of the views count 0
    assert 0 < float(signs["ibot_teacher_entropy"]) < float(signs["ln_prototypes"]) == pytest.approx(math.log(32))
    assert {"ibot_teacher_kl", "ibot_teacher_information", "ibot_prototypes_in_use"} <= set(signs)
    flat = tiny(ibot=1.0, ibot_head=own_head, student_temp=1e4, teacher_temp=1e4, teacher_temp_end=1e4).eval()
    with torch.no_grad():
        uniform = flat.vital_signs(batch)
    for name in ("ibot_per_patch", "ibot_teacher_entropy"):
        assert float(uniform[name]) == pytest.approx(math.log(32), abs=1e-4)
    assert not any(name.startswith("ibot") for name in tiny().eval().vital_signs(batch))


# ---- schedules and the teacher


def test_schedules_at_five_points() -> None:
    task = tiny(momentum=0.996, teacher_temp=0.04, teacher_temp_end=0.07, teacher_temp_warmup=0.3)
    for progress in (0.0, 0.1, 0.3, 0.7, 1.0):
        momentum = 1.0 + 0.5 * (0.996 - 1.0) * (1 + math.cos(math.pi * progress))
        temperature = 0.04 + 0.03 * min(progress / 0.3, 1.0)
        assert task.teacher_momentum(progress) == pytest.approx(momentum, abs=1e-7)
        assert task.teacher_temperature(progress) == pytest.approx(temperature, abs=1e-7)
    assert tiny().teacher_temperature(0.5) == 0.04


def test_teacher_is_the_student_at_the_start_and_follows_after_the_step(make_batch) -> None:
    task, batch = tiny(ibot=1.0), make_batch((16, 24))
    pairs = [(task.backbone, "backbone"), (task.head, "head"), (task.patch_head, "patch_head")]
    for student, name in pairs:
        assert all(torch.equal(v, task.teacher[name].state_dict()[k]) for k, v in student.state_dict().items())
    before = copy.deepcopy(task.teacher.state_dict())
    step(task, batch, 0.5)
    momentum = task.teacher_momentum(0.5)
    for student, name in pairs:
        for key, value in student.state_dict().items():
            expected = momentum * before[f"{name}.{key}"] + (1 - momentum) * value
            torch.testing.assert_close(task.teacher.state_dict()[f"{name}.{key}"], expected)
    assert not any(p.requires_grad for p in task.teacher.parameters())
    assert task.exports()["backbone"] is task.teacher["backbone"]


def test_prototypes_are_frozen_at_the_start_only(make_batch) -> None:
    """Their directions stay to the bit; a gradient of zero is there, because several processes wait for one."""
    task, batch = tiny(ibot=1.0), make_batch((16, 24))
    before = [head.prototypes.detach().clone() for head in (task.head, task.patch_head)]
    optimiser = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1)
    for progress, moved in ((0.05, False), (0.1, True)):
        optimiser.zero_grad()
        task(batch, progress)["loss"].backward()
        assert all(p.grad is not None for p in task.parameters() if p.requires_grad)
        optimiser.step()
        for head, old in zip((task.head, task.patch_head), before, strict=True):
            assert torch.equal(head.prototypes, old) != moved


def test_learned_lengths_of_the_prototypes_are_frozen_with_them(make_batch) -> None:
    task, batch = tiny(norm_last_layer=False, ibot=1.0), make_batch((16, 24))
    assert all(not p.requires_grad for p in task.teacher.parameters())
    for progress, learns in ((0.0, False), (0.5, True)):  # freeze_last is 0.1
        task.zero_grad()
        task(batch, progress)["loss"].backward()
        for head in (task.head, task.patch_head):
            assert [bool(part.grad.abs().max() > 0) for part in head.last()] == [learns, learns]


def test_stochastic_depth_acts_in_the_student_only(make_batch) -> None:
    backbone = ViT(2, 4, embed_dim=24, depth=2, heads=2, taps=1, drop_path=0.9)
    task, view = tiny(backbone=backbone).train(), make_batch((16, 24), 8)
    teacher = task.teacher["backbone"]
    assert torch.equal(teacher(view["image"]).pooled, teacher(view["image"]).pooled)
    assert not torch.equal(task.backbone(view["image"]).pooled, task.backbone(view["image"]).pooled)


def test_centre_moves_in_training_and_stays_in_evaluation(make_batch) -> None:
    task, batch = tiny(), make_batch((16, 24))
    task.eval()(batch, 0.5)
    task.vital_signs(batch)
    assert task.centre.value.abs().max() == 0
    with torch.no_grad():
        joined = join(task.views(batch)[:2])
        logits = task._teach(joined)[1]
    task.train()(batch, 0.5)
    assert task.centre.value.abs().max() == 0
    task.after_step(0.5)
    torch.testing.assert_close(task.centre.value, 0.1 * logits.mean(0), rtol=1e-4, atol=1e-6)


def test_the_centres_move_once_in_a_step_of_several_batches(make_batch) -> None:
    task, batch = tiny(ibot=1.0).train(), make_batch((16, 24))
    for _ in range(3):  # the same batch: the mean stays
        task(batch, 0.5)
    task.after_step(0.5)
    thrice = [centre.value.clone() for centre in (task.centre, task.masked.centring)]
    task = tiny(ibot=1.0).train()
    task(batch, 0.5)
    task.after_step(0.5)
    for found, centre in zip(thrice, (task.centre, task.masked.centring), strict=True):
        assert centre.value.abs().max() > 0
        torch.testing.assert_close(found, centre.value)


# ---- features


def test_the_feature_is_the_class_token_where_there_is_one(make_batch) -> None:
    assert tiny().feature == "class_token"
    assert tiny(backbone=UNetEncoder(2, 1, (4, 8), blocks=1)).feature == "pool"
    bare = ViT(2, 4, embed_dim=24, depth=2, heads=2, class_token=False)
    assert tiny(backbone=bare).feature == "pool"
    batch = make_batch((16, 24))
    pooled = tiny(feature="pool")._see(tiny().backbone, [batch])[0].feature
    torch.testing.assert_close(pooled, tiny().backbone(batch["image"]).pooled)
    for settings in ({"backbone": bare, "feature": "class_token"}, {"backbone": UNetEncoder(2), "ibot": 1.0}):
        with pytest.raises(UserError, match=r"needs? a ViT"):
            tiny(**settings)
    for settings in ({"teacher_temp": 0.0}, {"momentum": 1.5}, {"ibot_ratio": (0.0, 0.5)}):
        with pytest.raises(UserError, match="DINO"):
            tiny(**settings)


# ---- hidden patches


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_half_of_the_views_have_hidden_patches(make_batch, space: tuple[int, ...]) -> None:
    task, batch = tiny(len(space), ibot=1.0, ibot_ratio=(0.3, 0.5)), make_batch(space, 20)
    joined = join(task.views(batch)[:2])
    hidden = task.masked.hide(joined, 20, task.backbone.patch)
    per_view = hidden.mask.sum(1).view(2, 20)
    assert torch.equal((per_view > 0).sum(0), torch.ones(20, dtype=torch.int64))
    assert 0 < int((per_view[0] > 0).sum()) < 20
    assert torch.equal(per_view.sum(0), hidden.weight.sum(1).long())
    count = hidden.mask.shape[1]
    assert 0.3 - 0.5 / count <= float(per_view.sum(0).min()) / count
    assert float(per_view.max()) / count <= 0.5 + 0.5 / count


def test_hidden_patches_do_not_reach_the_student(make_batch) -> None:
    task, batch = tiny(ibot=1.0), make_batch((16, 24))
    joined = join(task.views(batch)[:2])
    hidden = task.masked.hide(joined, 4, (4, 4))

    def patches_of(view: Batch, hide) -> Tensor:
        return task._see(task.backbone, [view], hide)[0].patches

    voxels = hidden.mask.view(8, 1, 4, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = {**joined, "image": torch.where(voxels, joined["image"] + 5, joined["image"])}
    with torch.no_grad():
        first, second = (patches_of(view, hidden) for view in (joined, other))
        plain = patches_of(joined, None)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    untouched = hidden.mask.sum(1) == 0
    torch.testing.assert_close(first[untouched], plain[untouched])
    assert not torch.allclose(first[~untouched], plain[~untouched])


@pytest.mark.parametrize("own_head", [True, False])
@pytest.mark.parametrize("centring", ["centre", "sinkhorn"])
def test_all_options_train_together(make_batch, own_head: bool, centring) -> None:
    task = tiny(3, ibot=1.0, ibot_head=own_head, koleo=0.1, centring=centring)
    losses = task(make_batch((8, 8, 12)), 0.5)
    expected = losses["dino"] + losses["ibot"] + 0.1 * losses["koleo"]
    torch.testing.assert_close(losses["loss"], expected)
    losses["loss"].backward()
    assert [n for n, p in task.named_parameters() if p.requires_grad and p.grad is None] == []
    assert task.masked.mask_token.grad.abs().max() > 0


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_the_packed_pass_is_the_same_function(make_batch, space: tuple[int, ...], positions) -> None:
    results = []
    for packed in (False, True):
        torch.manual_seed(0)
        backbone = ViT(len(space), 4, embed_dim=24, depth=2, heads=2, taps=1, positions=positions, drop_path=0.0)
        task = tiny(backbone=backbone, packed=packed, ibot=1.0)
        loss = task(make_batch(space), 0.5)["loss"]
        loss.backward()
        results.append([loss.detach(), *[p.grad for p in backbone.parameters()]])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_packed_pass_drops_whole_images(make_batch) -> None:
    """Of an image that skips both branches of the last block, all tokens are those of a ViT without that block."""
    backbone = ViT(2, 4, embed_dim=24, depth=2, heads=2, taps=1, drop_path=0.5)
    views = [make_batch(space, 16)["image"] for space in ((16, 16), (8, 8))]
    tokens = [backbone.tokenize(view) for view in views]
    for x, y in zip(encode_packed(backbone.eval(), tokens), [backbone.encode(t) for t in tokens], strict=True):
        torch.testing.assert_close(x, y)
    shorter = copy.deepcopy(backbone)
    shorter.blocks = shorter.blocks[:1]
    backbone.blocks[1].drop_path.scale_by_keep = False
    torch.manual_seed(0)
    mixed = encode_packed(backbone.train(), tokens)[0]
    whole, skipped = (encode_packed(vit.eval(), tokens)[0] for vit in (backbone, shorter))
    like_skipped, like_whole = ((mixed - other).abs().amax(-1) < 1e-5 for other in (skipped, whole))
    assert torch.equal(like_skipped.all(1), like_skipped.any(1))  # never a part of an image
    assert torch.equal(like_whole.all(1), like_whole.any(1))
    assert 0 < like_skipped.all(1).sum() < 16


# ---- what is chosen, and what is said


@pytest.mark.parametrize("images", [1_000, 10_000, 1_300_000])
def test_choices_fit_the_data(images: int) -> None:
    chosen = DINO.choose({}, Plan(images, 64, 2000 if images < 100_000 else 125_000))
    values = {name: choice.value for name, choice in chosen.items()}
    assert all(choice.reason for choice in chosen.values())
    if images > 100_000:  # the paper's
        expected = {"prototypes": 65536, "hidden_dim": 2048, "momentum": 0.996, "koleo": 0.0}
        assert values == {**expected, "freeze_last": pytest.approx(0.1)}
    else:
        assert values["prototypes"] == {1_000: 256, 10_000: 2048}[images]
        assert 1 / (1 - values["momentum"]) == pytest.approx(20)
        assert values["koleo"] == 0.1
    few = DINO.choose({"centring": "sinkhorn"}, Plan(1_300_000, 16, 100))["prototypes"]
    assert few.value == 1024
    assert "Sinkhorn" in few.reason
    assert DINO.choose({"centring": "sinkhorn"}, Plan(1_300_000, 64, 100, forward_size=16))["prototypes"] == few


def test_koleo_is_left_out_where_a_forward_pass_has_one_image(make_batch) -> None:
    plan = Plan(500, 16, 100, forward_size=1)
    koleo = DINO.choose({}, plan)["koleo"]
    assert koleo.value == 0
    assert "there is one" in koleo.reason
    assert DINO.choose({}, Plan(500, 16, 100, forward_size=2))["koleo"].value == 0.1
    task = tiny(koleo=koleo.value)
    assert torch.isfinite(task(make_batch((16, 16), 1), 0.5)["loss"])


def test_verdicts() -> None:
    task, most = tiny(), math.log(4096)
    healthy = {
        "teacher_entropy": 4.0, "teacher_kl": 0.5, "teacher_information": 3.8, "prototypes_in_use": 40.0,
        "ln_prototypes": most, "progress": 0.7,
    }  # fmt: skip
    assert task.verdict(healthy) == ""
    uniform = {**healthy, "teacher_entropy": most, "teacher_kl": 0.0, "teacher_information": 0.0}
    assert "teacher is uniform: loss stays at ln K = 8.32" in task.verdict(uniform)
    assert task.verdict({**uniform, "progress": 0.1}) == ""  # every run begins like this
    single = {**healthy, "teacher_entropy": 0.0, "teacher_kl": most, "teacher_information": 0.0, "progress": 0.2}
    assert "one prototype takes all" in task.verdict(single)
    assert task.verdict({**single, "progress": 0.1}) == ""  # sound runs pass through this before the centre has moved
    few = {**single, "teacher_kl": 0.93 * most, "teacher_information": 0.38}
    assert task.verdict(few) == ""  # two prototypes for all, but they tell images apart
    assert "not finite" in task.verdict({**healthy, "teacher_entropy": math.nan})


# ---- training in small


SMALL_DATA = {"koleo": 0.1, "prototypes": 64, "hidden_dim": 128, "bottleneck_dim": 256}


def pictures(space: tuple[int, ...], count: int) -> Tensor:
    """Noise of another coarseness in every image: something to tell them apart by."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(count, 1, *space, generator=generator)
    smooth = gaussian_blur(noise, torch.rand(count, generator=generator) * 3 + 0.3)
    return 0.5 + 0.2 * smooth / smooth.std(tuple(range(1, smooth.ndim)), keepdim=True)


def train(space: tuple[int, ...], steps: int = 60, lr: float = 2e-3, **changes) -> tuple[DINO, dict[str, float]]:
    images, batch = pictures(space, 32), 16
    views = MultiCrop(local_count=2, multiple=4, style="none")
    task = tiny(len(space), views=views, **{**SMALL_DATA, **changes})
    trained = [p for p in task.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=lr, weight_decay=0.04)
    for number in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (number + 1) / 10)
        rows = torch.randperm(32, generator=torch.Generator().manual_seed(number))[:batch]
        keys = sample_keys(0, torch.arange(batch) + number * batch)
        optimiser.zero_grad()
        task({"image": images[rows], "key": keys}, number / steps)["loss"].backward()
        clip_each(trained, 3.0)
        optimiser.step()
        task.after_step((number + 1) / steps)
    with torch.no_grad():
        signs = task.eval().vital_signs({"image": images, "key": sample_keys(5, torch.arange(32))})
        signs["feature_spread"] = feature_spread(task._see(task.exports()["backbone"], [{"image": images}])[0].feature)
    return task, {name: float(value) for name, value in signs.items()}


@pytest.mark.parametrize("space", [(16, 16), (8, 8, 8)], ids=["2d", "3d"])
def test_a_small_training_stays_alive(space: tuple[int, ...]) -> None:
    task, signs = train(space)
    assert task.verdict(signs) == ""
    assert signs["prototypes_in_use"] >= 5
    assert signs["feature_spread"] > 0.05


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"centre_momentum": 1.0, "koleo": 0.0}, "one prototype takes all"),  # a centre that never moves
        ({"koleo": 0.0, "lr": 0.2}, "no image is told from another"),
    ],
    ids=["no centring", "lr x 100"],
)
def test_a_collapse_is_named(changes: dict, words: str) -> None:
    task, signs = train((16, 16), steps=40, **changes)
    assert words in task.verdict(signs)


# ---- two processes equal one


def _shared(rows: slice) -> tuple[DINO, Batch]:
    batch: Batch = {"image": pictures((16, 16), 8)[rows], "key": sample_keys(0, torch.arange(8))[rows]}
    views = MultiCrop(local_count=2, multiple=4, style="none")
    return tiny(views=views, ibot=1.0, koleo=0.1, centring="sinkhorn"), batch


def _work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    task, batch = _shared(slice(4 * rank, 4 * rank + 4))
    task(batch, 0.5)["loss"].backward()
    gradients = {}
    for name, parameter in task.named_parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            gradients[name] = parameter.grad / world  # what a trainer does
    torch.save(gradients, Path(folder) / f"{rank}.pt")
    leave()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(_work, (2, str(tmp_path)), nprocs=2)
    task, batch = _shared(slice(0, 8))
    task(batch, 0.5)["loss"].backward()
    expected = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
    found = torch.load(tmp_path / "0.pt", weights_only=True)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-5, rtol=2e-3)


@pytest.mark.parametrize("label", SPACES)
def test_golden_losses(make_batch, label: str) -> None:
    """Three steps give the numbers in golden.json. After a change that means to move them: run this test, copy them."""
    space = SPACES[label]
    task, batch = tiny(len(space)), make_batch(space)
    losses = [float(step(task, batch, number / 3)) for number in range(3)]
    assert losses == pytest.approx(GOLDEN[f"dino_{label}"], rel=1e-3)
