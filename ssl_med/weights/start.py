"""A training that begins with weights from elsewhere: the backbone's, or those of the whole task."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from ssl_med.backbones import Backbone
from ssl_med.errors import UserError
from ssl_med.tasks import Task
from ssl_med.weights.adapt import Channels, Inflation
from ssl_med.weights.audit import Audit, Row
from ssl_med.weights.load import load_weights
from ssl_med.weights.parts import candidates
from ssl_med.weights.sources import Source, read_source


@dataclass
class Start:
    """What ``--init_from`` says.

    Args:
        source: an export, run or checkpoint of ssl_med, weights of somebody else, or a Hugging Face folder.
        what: ``auto`` takes the whole task (heads, teacher) where the source is the same task with the same settings,
            else the backbone alone; ``backbone`` always takes the backbone alone.
        at_least: share of the backbone's parameters that must be filled.
        channels: law for another number of input channels: ``sum``, ``mean``, ``repeat``.
        inflate: 2D weights in 3D and back: ``average`` or ``centre``.
        axes: ``reversed`` for a source that was trained on volumes (x, y, z).
        grid: patches along each axis of the source's positions, where they are no square or cube.
        part: which of several models in the source.
        drop: names of the source that may be left out although they change the features.
    """

    source: str
    what: Literal["auto", "backbone"] = "auto"
    at_least: float = 0.95
    channels: Channels = "sum"
    inflate: Inflation | None = None
    axes: Literal["same", "reversed"] = "same"
    grid: Sequence[int] | None = None
    part: str | None = None
    drop: Sequence[str] = ()


class Started(NamedTuple):
    """What a training began with.

    Attributes:
        audit: of the weights.
        heads: the heads and teachers of the task came along; False where they are new.
    """

    audit: Audit
    heads: bool


def start_from(task: Task, start: Start) -> Started:
    """Load weights into a task that has just been built; its teachers are copies of its student again.

    Args:
        task: not trained yet.
        start: where from and how.

    Raises:
        UserError: see :func:`ssl_med.weights.load_weights`.
    """
    read = read_source(start.source)
    if start.what == "auto" and start.part is None and (state := _whole_task(read, task)) is not None:
        task.load_state_dict(state)
        return Started(_audit_of_task(read, task), heads=True)
    backbone = getattr(task, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise UserError(f"--init_from: {type(task).__name__} has no part named backbone")
    how = {name: value for name, value in asdict(start).items() if name != "what"}
    audit = load_weights(into=backbone, **how)
    copied = _teach(task, backbone)
    if copied:
        audit.notes.append(f"teachers that are copies of the new student: {', '.join(copied)}")
    return Started(audit, heads=False)


def _whole_task(read: Source, task: Task) -> dict[str, Tensor] | None:
    """The task's state in a source, if names and shapes are exactly the task's."""
    own = {name: value.shape for name, value in task.state_dict().items()}
    for found in candidates(read.content):
        if {name: value.shape for name, value in found.state.items()} == own:
            return found.state
    return None


def _audit_of_task(read: Source, task: Task) -> Audit:
    sizes = {name: p.numel() for name, p in task.named_parameters()}
    rows = [Row(name, "loaded", name, parameters=sizes.get(name, 0)) for name in task.state_dict()]
    audit = Audit(read.name, read.sha256, f"{type(task).__name__} of ssl_med, heads and teachers with it", rows=rows)
    audit.notes.append("FLOPs are not counted: all of the task was loaded")
    return audit


def _teach(task: Task, backbone: Backbone) -> list[str]:
    """Frozen copies of the backbone inside a task, made when it was built, take the new weights too."""
    state, copied = backbone.state_dict(), []
    for name, module in task.named_modules():
        if module is not backbone and type(module) is type(backbone) and _is_frozen(module):
            module.load_state_dict(state)
            copied.append(name)
    return copied


def _is_frozen(module: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())


def as_start(section: Mapping[str, Any] | None) -> Start | None:
    """A config's section ``init_from``; None where there is none.

    Raises:
        UserError: no source in it.
    """
    if not section:
        return None
    if not section.get("source"):
        raise UserError(
            "init_from: needs a source, such as `--init_from runs/mae` or `--init_from weights.safetensors`"
        )
    return Start(**section)
