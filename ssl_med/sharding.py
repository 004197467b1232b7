"""One task on many processes that each hold a part of it (FSDP2, Zhao et al., arXiv 2304.11277), and what blocks allow.

A unit is a block that is computed in one call: it is what is gathered at a time, recomputed, or compiled.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from inspect import signature
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.distributed._composable import checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ssl_med.backbones.block import Block
from ssl_med.backbones.residual_encoder import PooledShortcutBlock
from ssl_med.backbones.staged import ConvNorm
from ssl_med.backbones.unet import ResidualBlock
from ssl_med.errors import UserError
from ssl_med.ops.norm import once_more
from ssl_med.recipe import build, recipe
from ssl_med.tasks import Task

LOG = logging.getLogger("ssl_med")
_UNITS = (Block, ResidualBlock, PooledShortcutBlock, ConvNorm)


def units(task: nn.Module) -> list[nn.Module]:
    """The blocks of a task, of its teachers and decoders too; none inside another."""
    found, inside = [], set()
    for module in task.modules():
        if isinstance(module, _UNITS) and module not in inside:
            found.append(module)
            inside |= set(module.modules())
    return found


def is_sharded(task: nn.Module) -> bool:
    """This process holds only a part of the task."""
    return any(isinstance(parameter, DTensor) for parameter in task.parameters())


def shard(task: Task, mesh: DeviceMesh) -> dict[str, Any]:
    """Leave in this process its share of every parameter, teachers included; gathered block by block when computed.

    Weights that are stored channels last become contiguous: FSDP2 takes no others.

    Args:
        task: the same on all processes; it is changed in place.
        mesh: one axis to shard over; or two, copies and shards, of which only the second is sharded over.

    Returns:
        The recipe of the task, which its class no longer gives: see :func:`whole`.
    """
    blueprint = recipe(task)
    for parameter in task.parameters():
        parameter.data = parameter.data.contiguous()
    for unit in units(task):
        fully_shard(unit, mesh=mesh)
    fully_shard(task, mesh=mesh)
    return blueprint


def whole(task: Task, blueprint: dict[str, Any]) -> Task | None:
    """A copy of a sharded task with all its weights, for the first process; None for the others.

    All processes call it together. It is for looking and exporting: what is done to it does not reach the task.

    Args:
        task: sharded.
        blueprint: what :func:`shard` returned.
    """
    state = get_model_state_dict(task, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank():
        return None
    twin = build(blueprint, Task)
    twin.load_state_dict(state)
    for name, value in vars(task).items():  # such as the temperature of the last step, which vital signs need
        if type(value) in (int, float):
            setattr(twin, name, value)
    return twin.to(next(task.parameters()).device)


def recompute(task: nn.Module) -> None:
    """Keep only the input of every trained block and compute it again in the backward pass (arXiv 1604.06174).

    Dropout repeats its masks, and batch norms do not remember a batch twice.
    """
    for unit in units(task):
        if any(parameter.requires_grad for parameter in unit.parameters()):
            checkpoint(unit, context_fn=lambda: (nullcontext(), once_more()))


def compile_units(task: nn.Module) -> None:
    """Compile every block by itself, in place: equal blocks share their code, so the time does not grow with depth.

    Where the compiler does not work, or meets a block that it cannot compile, all blocks go on as they are and a line
    says why.
    """
    reason = _cannot_compile()
    if reason:
        _go_on_without([], reason)
        return
    compiled = units(task)
    for unit in compiled:
        unit.compile()
        unit._compiled_call_impl = _or_plain(unit, compiled)


def _cannot_compile() -> str:
    """Why the compiler does not work here, in one line; empty if it does."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(torch.cos)(torch.ones(2, device=device))
    except (RuntimeError, OSError, ImportError) as error:  # torch._dynamo's and inductor's are RuntimeErrors
        return _first_line(error)
    return ""


def _or_plain(unit: nn.Module, compiled: list[nn.Module]) -> Callable[..., Any]:
    """The compiled call of a block; the first that cannot be compiled ends compiling for all."""
    call = cast(Callable[..., Any], unit._compiled_call_impl)

    def attempt(*arguments: Any, **more: Any) -> Any:
        try:
            return call(*arguments, **more)
        except TorchDynamoException as error:  # raised before anything of the block has been computed
            _go_on_without(compiled, _first_line(error))
            return unit(*arguments, **more)

    return attempt


def _go_on_without(compiled: list[nn.Module], reason: str) -> None:
    for unit in compiled:
        unit._compiled_call_impl = None
    LOG.warning("learner.compile_blocks: blocks are not compiled, the run goes on without: %s", reason)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"


class Sharded(ModelParallelStrategy):
    """FSDP2 for any task, on GPUs and on CPUs: ``trainer.strategy: fsdp``.

    Args:
        within: processes that share one copy of the task; the copies are trained as by DDP. ``fsdp_node`` in a config
            stands for the processes of one machine. All processes if None.
        timeout: see Lightning.
    """

    def __init__(self, within: int | None = None, **settings: Any) -> None:
        super().__init__(save_distributed_checkpoint=True, **settings)
        self.within = within

    def setup_environment(self) -> None:
        """Start the processes' group and lay them out."""
        self._setup_distributed()
        shards = self.within or self.world_size
        if self.world_size % shards:
            raise UserError(f"trainer.strategy: {self.world_size} processes are not a multiple of {shards} that share")
        shape = (self.world_size,) if shards == self.world_size else (self.world_size // shards, shards)
        names = ("data_parallel",) if len(shape) == 1 else ("replicate", "shard")
        self._device_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)
        cast(Any, self.lightning_module)._device_mesh = self._device_mesh


def strategy_of(name: Any, devices: Any) -> Any:
    """What Lightning is given for ``trainer.strategy``: ours for ``fsdp`` and ``fsdp_node``, else what was asked for.

    Args:
        name: the setting.
        devices: processes on each machine.
    """
    if name == "fsdp":
        return Sharded()
    if name == "fsdp_node":
        return Sharded(within=int(devices))
    return name


def keep_buffers(trainer: pl.Trainer) -> None:
    """No broadcast of buffers before each forward pass: ours follow from global sums and are the same everywhere."""
    if isinstance(trainer.strategy, DDPStrategy):
        names = signature(nn.parallel.DistributedDataParallel.__init__).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # before torch 2.15
        trainer.strategy._ddp_kwargs.setdefault(name, False)
