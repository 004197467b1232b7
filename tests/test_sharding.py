"""What blocks allow: computed twice, compiled, laid out over a thousand processes; nothing but the cost changes."""

import logging
from collections.abc import Callable

import pytest
import torch
from contracts.test_tasks import SMALL
from double import in_double
from timm.layers import DropPath
from torch._dynamo.exc import TorchDynamoException
from worlds import image_batch

import finetune
from benchmarks.shards import sharded
from ssl_med import sharding
from ssl_med.backbones import UNetEncoder, ViT
from ssl_med.data.sampler import StepBatches
from ssl_med.errors import UserError
from ssl_med.ops.norm import BatchNorm, over_all_processes
from ssl_med.tasks import BYOL, DINO, MAE, ModelsGenesis, Task

WORLD = 1024


def vit() -> ViT:
    return ViT(2, 4, embed_dim=24, depth=3, heads=2, taps=2, drop_path=0.5)


TASKS: dict[str, tuple[Callable[[], Task], tuple[int, ...]]] = {
    "DINO with stochastic depth": (lambda: DINO(vit(), **SMALL["DINO"]), (16, 24)),
    "DINO packed": (lambda: DINO(vit(), packed=True, **SMALL["DINO"]), (16, 24)),
    "BYOL with batch norm": (lambda: BYOL(UNetEncoder(3, 1, (4, 8), norm="batch"), **SMALL["BYOL"]), (8, 8, 12)),
    "ModelsGenesis": (lambda: ModelsGenesis(UNetEncoder(3, 1, (4, 8)), widths=[4, 8]), (8, 8, 12)),
    "Segment": (lambda: finetune.Segment(vit(), window=[16, 24], classes=2, widths=[4, 8]), (16, 24)),
}


def trained(name: str, prepare: Callable[[Task], object] = lambda task: None) -> list[dict[str, torch.Tensor]]:
    """Losses, gradients and state of two steps in double precision."""
    make, space = TASKS[name]
    torch.manual_seed(0)
    task = make().double()
    prepare(task)
    optimiser = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1)
    found = []
    for step in range(2):
        optimiser.zero_grad()
        torch.manual_seed(step)  # as the learner does
        loss = task(image_batch(space, count=4, seed=step, dtype=torch.float64), step / 2)["loss"]
        loss.backward()
        found.append({n: p.grad.clone() for n, p in task.named_parameters() if p.grad is not None})
        optimiser.step()
        task.after_step((step + 1) / 2)
        found.append({"loss": loss.detach(), **{n: v.clone() for n, v in task.state_dict().items()}})
    return found


@pytest.fixture(autouse=True)
def double_precision():
    with in_double():
        yield


def same(first: list[dict], second: list[dict]) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a) for a, b in zip(first, second, strict=True)
    )


# recomputation


@pytest.mark.parametrize("name", TASKS)
def test_recomputed_blocks_give_the_same_bits(name: str) -> None:
    """Gradients, weights, teachers, and the moments that batch norms remember."""
    calls = []

    def counted(task: Task) -> None:
        sharding.recompute(task)
        for unit in sharding.units(task):
            unit.register_forward_pre_hook(lambda unit, _: calls.append(id(unit)))

    assert same(trained(name), trained(name, counted))
    student = sharding.units(TASKS[name][0]().backbone)
    assert len(calls) > 2 * len(student)


def test_masks_are_those_of_the_first_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: dict[int, list[list[bool]]] = {}
    drop = DropPath.forward

    def noted(self: DropPath, x: torch.Tensor) -> torch.Tensor:
        out = drop(self, x)
        if torch.is_grad_enabled():
            masks.setdefault(id(self), []).append(out.flatten(1).any(1).tolist())
        return out

    monkeypatch.setattr(DropPath, "forward", noted)
    torch.manual_seed(0)
    task = MAE(vit(), **SMALL["MAE"]).double()
    sharding.recompute(task)
    task(image_batch((16, 24), count=16, dtype=torch.float64), 0.5)["loss"].backward()
    layers = list(masks.values())
    assert len(layers) == 2  # the first block drops nothing
    first, again = [seen[:2] for seen in layers], [seen[2:] for seen in layers]
    assert all(again)  # the second branch is not always needed to its end
    assert all(two == one[: len(two)] for one, two in zip(first, again, strict=True))
    assert all(0 < sum(one) < 16 for seen in layers for one in seen)


# compiling


def refused(*_: object, **__: object) -> None:
    raise RuntimeError("no compiler\nand more lines")


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    expected = trained("DINO with stochastic depth")
    monkeypatch.setattr(torch, "compile", refused)
    with caplog.at_level(logging.WARNING):
        found = trained("DINO with stochastic depth", sharding.compile_units)
    assert same(expected, found)
    assert [r.getMessage() for r in caplog.records] == [
        "learner.compile_blocks: blocks are not compiled, the run goes on without: RuntimeError: no compiler"
    ]


def fails_when_called(function: Callable, **_: object) -> Callable:
    def call(*_: object, **__: object) -> None:
        raise TorchDynamoException("this block cannot be traced\nand more lines")

    return call


def test_a_block_that_cannot_be_compiled_is_computed_as_it_is(monkeypatch, caplog) -> None:
    """The compiler works, and fails on the first block: in its first step the run goes on, with one line."""
    expected = trained("ModelsGenesis")
    monkeypatch.setattr(sharding, "_cannot_compile", str)
    monkeypatch.setattr(torch, "compile", fails_when_called)
    with caplog.at_level(logging.WARNING):
        found = trained("ModelsGenesis", sharding.compile_units)
    assert same(expected, found)
    assert [r.getMessage() for r in caplog.records] == [
        "learner.compile_blocks: blocks are not compiled, the run goes on without: "
        "TorchDynamoException: this block cannot be traced"
    ]


# batch norms of others


def test_batch_norms_of_others_keep_their_weights_and_their_numbers() -> None:
    import timm

    theirs = timm.create_model("test_efficientnet", in_chans=1, drop_path_rate=0.0).double()
    names, image = list(theirs.state_dict()), torch.randn(4, 1, 32, 32)
    expected = theirs(image)
    over_all_processes(theirs)
    assert list(theirs.state_dict()) == names
    assert all(
        isinstance(m, BatchNorm) for m in theirs.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
    )
    torch.testing.assert_close(theirs(image), expected)


# a thousand processes


def rows_of(length: int, rank: int, world: int) -> int:
    """Rows of a tensor that a process holds: whole chunks for the first ones, what is left, then nothing."""
    chunk = -(-length // world)
    return max(0, min(chunk, length - rank * chunk))


def wide() -> MAE:
    """Without memory; some of its tensors have more rows than there are processes, and some fewer."""
    with torch.device("meta"):
        return MAE(ViT(3, 8, embed_dim=1536, depth=1, heads=12), decoder_dim=512, decoder_depth=1, decoder_heads=8)


@pytest.mark.parametrize(("within", "ranks"), [(None, (0, 700, WORLD - 1)), (8, (WORLD - 1,))], ids=["all", "by 8"])
def test_each_of_1024_processes_holds_its_share(within: int | None, ranks: tuple[int, ...]) -> None:
    shapes, shards = {name: p.shape for name, p in wide().named_parameters()}, within or WORLD
    for rank in ranks:
        held = {n: (rows_of(shape[0], rank % shards, shards), *shape[1:]) for n, shape in shapes.items()}
        assert sharded(wide(), WORLD, rank, within) == held
    rows = {n: sum(rows_of(shape[0], rank, shards) for rank in range(shards)) for n, shape in shapes.items()}
    assert rows == {n: shape[0] for n, shape in shapes.items()}


def test_1024_processes_share_every_batch() -> None:
    batch, start = 4096, 7
    deals = [iter(StepBatches(batch, start, rank, WORLD)) for rank in range(WORLD)]
    for step in (start, start + 1):
        parts = [next(deal) for deal in deals]
        assert {len(part) for part in parts} == {batch // WORLD}
        assert [place for part in parts for place in part] == list(range(step * batch, (step + 1) * batch))
    with pytest.raises(UserError, match="does not divide over 1024 processes"):
        StepBatches(1000, 0, 0, WORLD)
