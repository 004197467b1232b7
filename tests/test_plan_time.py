"""``ssl-med plan``: the law of the step time, its calibration on a task, and the table for many GPUs."""

import itertools
import math

import numpy as np
import pytest
import torch

from ssl_med.backbones import UNetEncoder, ViT
from ssl_med.cli import main
from ssl_med.errors import UserError
from ssl_med.learner import Learner
from ssl_med.tasks import MAE, ModelsGenesis
from ssl_med.verbs.plan import plan
from ssl_med.verbs.plan_measure import calibrate, fitted, ladder
from ssl_med.verbs.plan_step import Stepper
from ssl_med.verbs.plan_time import Count, Size, StepTime, fit_step_time, per_sample, worst_error

CPU = torch.device("cpu")

# --- the law --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [(1e9, 4e9), (1e9, 2e9, 3e9, 7e10)])
def test_the_fit_recovers_the_law_that_made_the_times(work):
    law = fit_step_time([(flops, 0.07 + 1.4e-11 * flops) for flops in work])
    assert law == pytest.approx((0.07, 1.4e-11))
    assert worst_error(law, [(1e10, 0.21), (1e10, 0.42)]) == pytest.approx(0.5)


def test_the_fit_is_the_weighted_least_squares_of_numpy():
    generator = np.random.default_rng(0)
    work = generator.uniform(1e9, 1e11, 6)
    times = (0.05 + 1e-11 * work) * generator.uniform(0.9, 1.1, 6)
    rows = np.stack([1 / times, work / times], 1)  # each line divided by its time: errors are relative
    expected = np.linalg.lstsq(rows, np.ones(6), rcond=None)[0]
    assert fit_step_time(list(zip(work.tolist(), times.tolist(), strict=True))) == pytest.approx(tuple(expected))


def test_a_constant_is_never_negative():
    points = [(1e9, 0.1), (2e9, 0.3)]
    law = fit_step_time(points)
    assert law.fixed == 0

    def error(slope):
        return sum((slope * flops / seconds - 1) ** 2 for flops, seconds in points)

    assert error(law.per_flop) < min(error(law.per_flop * 0.99), error(law.per_flop * 1.01))


def test_times_that_do_not_grow_are_refused():
    with pytest.raises(UserError, match=r"1 GFLOP in 0\.3 s; 2 GFLOP in 0\.2 s.*busy"):
        fit_step_time([(1e9, 0.3), (2e9, 0.2)])


def test_counts_of_a_sample_and_of_another_crop():
    few, many = Count(7.0, 20.0, 11.0), Count(13.0, 40.0, 21.0)
    assert per_sample((2, few), (4, many)) == Count(3.0, 10.0, 5.0)
    assert Count(3.0, 10.0, 5.0).at(8.0) == Count(24.0, 640.0, 40.0)


def test_a_prediction_for_another_batch_and_crop():
    """A made-up machine: 0.1 s a step, 1e-10 s per FLOP; layers 5 and attention 0.25 FLOP per voxel (and voxel)."""

    def count(size):
        voxels = math.prod(size.crop)
        return Count(1000 + 5.0 * voxels * size.batch, 0.25 * voxels**2 * size.batch, 2.0 * voxels * size.batch)

    sizes = [Size(2, (8, 8)), Size(4, (8, 8)), Size(2, (16, 16))]
    times = {size: 0.1 + 1e-10 * count(size).flops for size in sizes}
    found = fitted({size: count(size) for size in sizes}, times, state=16)
    for batch, edge in itertools.product((1, 3, 64), (8, 24, 40)):
        size = Size(batch, (edge, edge))
        assert found.at(size) == pytest.approx(count(size))
        assert found.seconds(size) == pytest.approx(0.1 + 1e-10 * count(size).flops)


@pytest.mark.parametrize(
    ("per_step", "wanted", "batches"),
    [(2.0, 64, [2, 4]), (0.0, 64, [2, 32, 64]), (0.0, 2, [2, 4]), (0.1, 64, [2, 8, 16]), (0.0, 50, [2, 16, 32])],
)
def test_batches_grow_until_the_wanted_one_or_a_second(per_step, wanted, batches):
    sizes = ladder(lambda size: per_step * size.batch, (8, 8), wanted)
    assert sizes == [Size(batch, (8, 8)) for batch in batches]


# --- on a task ------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def tiny_mae():
    torch.manual_seed(0)
    vit = ViT(2, 4, embed_dim=32, depth=2, heads=2, class_token=False)
    return MAE(vit, decoder_dim=16, decoder_depth=1, decoder_heads=2, mask_ratio=0.75)


def test_counts_at_another_crop_are_those_of_a_step_there():
    stepper = Stepper(Learner(tiny_mae()), 1, CPU, None, clock := Clock())
    plain = stepper.step

    def step(batch):
        plain(batch)
        clock.now += 1 + batch["image"].numel()

    stepper.step = step
    found = calibrate(stepper, [Size(2, (32, 32)), Size(4, (32, 32))], rounds=1)
    for size in (Size(8, (32, 32)), Size(3, (64, 64))):
        predicted, counted = found.at(size), stepper.count(size)
        assert predicted.dense == pytest.approx(counted.dense, rel=1e-6)
        assert predicted.attention == pytest.approx(counted.attention, rel=1e-6)
        assert predicted.kept == pytest.approx(counted.kept, rel=0.02)
    assert found.points[Size(4, (32, 32))][1] == 1 + 4 * 32 * 32
    assert worst_error(found.law, list(found.points.values())) < 1e-9


def test_a_step_is_the_learners():
    """Weights move, gradients are clipped, and what is kept of four samples is twice that of two."""
    task = ModelsGenesis(UNetEncoder(2, widths=(4, 8)), widths=(4, 8))
    stepper = Stepper(Learner(task, lr=1e-2, clip=1e-3), 1, CPU, None)
    before = [parameter.clone() for parameter in task.parameters()]
    stepper.step(stepper.batch(Size(2, (16, 16))))
    gradients = [parameter.grad for parameter in task.parameters() if parameter.grad is not None]
    assert torch.stack([gradient.norm() for gradient in gradients]).norm() <= 1.01e-3
    assert any(not torch.equal(old, new) for old, new in zip(before, task.parameters(), strict=True))
    assert stepper.state_bytes() == 16 * sum(parameter.numel() for parameter in task.parameters())
    few, many = (stepper.count(Size(batch, (16, 16))) for batch in (2, 4))
    assert many.dense == 2 * few.dense > 0 == few.attention
    assert many.kept == pytest.approx(2 * few.kept, rel=0.05)


CONFIG = """
task:
  class_path: ssl_med.tasks.ModelsGenesis
  init_args:
    backbone: {class_path: ssl_med.backbones.UNetEncoder, init_args: {spatial_dims: 2, widths: [4, 8]}}
    widths: [4, 8]
data: {crop: 64, batch_size: 8}
learner: {lr: 1.0e-3}
trainer: {max_steps: 300, precision: 32-true, accelerator: cpu}
"""


@pytest.fixture
def steady(monkeypatch):
    """Steps that take 0.5 s and 0.25 s a sample, whatever the machine does."""

    def seconds(self, sizes, rounds):
        return {size: 0.5 + 0.25 * size.batch for size in sizes}

    monkeypatch.setattr(Stepper, "seconds", seconds)


def test_measuring_says_what_step_epoch_and_job_take(tmp_path, capsys, steady):
    path = tmp_path / "mine.yaml"
    path.write_text(CONFIG)
    assert main(["plan", str(path), "--measure", "--volumes", "96", "--measure_crop", "32"]) == 0
    printed = capsys.readouterr().out
    same = plan(str(path), measure=True, volumes=96)
    assert same["step_seconds"] == pytest.approx(2.5)
    assert same["epoch_minutes"] == pytest.approx(96 / 8 * 2.5 / 60)
    assert same["job_hours"] == pytest.approx(300 * 2.5 / 3600)
    assert "steps of 2 x 32x32, 4 x 32x32" in printed
    assert "precision 32-true" in printed
    assert "reading is not in the time" in printed
    lines = dict(line.split("  ", 1) for line in printed.splitlines() if "  " in line and line[0] != " ")
    assert lines["step"].split() == ["8,500", "ms"]  # 0.5 s, and 8 samples of four times the voxels
    smaller = plan(str(path), measure=True, batch=2)
    assert smaller["measured_memory_bytes"] < same["measured_memory_bytes"]


def test_accumulated_gradients_count_as_samples_of_a_step(tmp_path, steady):
    path = tmp_path / "mine.yaml"
    path.write_text(CONFIG.replace("max_steps: 300", "max_steps: 300, accumulate_grad_batches: 4"))
    got = plan(str(path), measure=True, volumes=96)
    assert got["measured_batch"] == 32
    assert got["step_seconds"] == pytest.approx(0.5 + 32 * 0.25)
    assert got["epoch_minutes"] == pytest.approx(3 * 8.5 / 60)


def test_a_config_of_several_stores_is_not_measured():
    with pytest.raises(UserError, match="one store"):
        plan("one_backbone", measure=True)


def test_a_config_without_a_crop_is_not_measured(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(CONFIG.replace("crop: 64, ", "crop: null, "))
    with pytest.raises(UserError, match=r"crop"):
        plan(str(path), measure=True)


# --- many GPUs ------------------------------------------------------------------------------------------------------


def test_the_table_for_many_gpus(capsys):
    """Platform survey: MAE, ViT-L, 96^3 in patches of 8: 45 GB/s from storage and half an hour for 1e8 on 256 GPUs."""
    got = plan(size="vit_large", patch=8, class_token=False, samples=1e8, scale=True, link_gb_s=1e6)
    lines = {line.gpus: line for line in got["scale"]}
    assert list(lines) == [8, 64, 256, 1024]
    assert [line.bytes_per_second / 1e9 for line in lines.values()] == pytest.approx([1.4, 11, 45, 180], rel=0.02)
    assert [line.days * 24 for line in lines.values()] == pytest.approx([14.7, 1.83, 0.46, 0.115], rel=0.03)
    assert lines[256].node_bytes_per_second == pytest.approx(lines[256].bytes_per_second / 32)
    assert lines[1024].global_batch == 64 * 1024
    assert [line.days_between_stops for line in lines.values()] == pytest.approx([264, 33, 8.25, 2.06], rel=0.01)
    printed = capsys.readouterr().out
    for words in ("64 samples per GPU", "1e+06 GB/s per GPU, not hidden", "8 GPUs a node", "100,000,000 samples"):
        assert words in printed


def ring(gradients):
    """Bytes that each of p processes sends in a ring all-reduce, counted by doing it: p arrays of p chunks."""
    number, sent = len(gradients), 0
    chunks = [np.array_split(gradient.copy(), number) for gradient in gradients]
    for phase, turn in itertools.product(range(2), range(number - 1)):
        moved = [(rank - turn + phase) % number for rank in range(number)]
        parcels = [chunks[rank][moved[rank]].copy() for rank in range(number)]
        sent += parcels[0].nbytes
        for rank in range(number):
            place = moved[rank]
            there = chunks[(rank + 1) % number]
            there[place] = parcels[rank] if phase else there[place] + parcels[rank]
    return sent, [np.concatenate(parts) for parts in chunks]


def test_the_all_reduce_sends_what_a_ring_sends():
    gradients = [np.full(64, rank, np.float32) for rank in range(8)]
    sent, sums = ring(gradients)
    assert all((total == 28).all() for total in sums)
    got = plan(scale=True, batch=16)
    parameters = got["parameters_encoder"] + got["parameters_decoder"]
    line = got["scale"][0]
    assert line.reduce_bytes == pytest.approx(parameters * sent / 64)
    assert line.reduce_seconds == pytest.approx(line.reduce_bytes / 50e9)
    assert 1 / line.steps_per_second == pytest.approx(line.compute_seconds + line.reduce_seconds)
    assert line.compute_seconds == pytest.approx(16 / got["samples_per_second_per_gpu"])


def test_the_batch_of_the_table_is_the_configs():
    assert plan("mae_2d", scale=True)["scale"][0].global_batch == 8 * 256
    assert plan("mae_2d", scale=True, batch=3, gpus_per_node=4)["scale"][0].global_batch == 24


def test_a_law_says_seconds():
    assert StepTime(0.5, 2e-12).seconds(1e12) == 2.5
