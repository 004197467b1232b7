"""A model as a graph needs it: tensors in, a tuple of named tensors out."""

import copy

import torch
from torch import Tensor, nn

from ssl_med.backbones import Backbone, ViT
from ssl_med.errors import UserError


class ServedBackbone(nn.Module):
    """Pooled features and all maps."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.names = ["pooled", *[f"map_{i}" for i in range(len(backbone.channels))]]

    def forward(self, image: Tensor, spacing: Tensor | None = None) -> tuple[Tensor, ...]:
        """(b, c, \\*space) -> (b, d), then each map, fine to coarse."""
        features = self.backbone(image, spacing)
        return (features.pooled, *features.maps)


class ServedTask(nn.Module):
    """Logits of a fine-tuned task."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        if not hasattr(task, "logits"):
            raise UserError(f"{type(task).__name__} has no logits to export; export it as native")
        self.task, self.names = task, ["logits"]

    def forward(self, image: Tensor, spacing: Tensor | None = None) -> tuple[Tensor, ...]:
        """(b, c, \\*space) -> (b, classes) or (b, classes, \\*space)."""
        return (self.task.logits(image, spacing),)  # pyright: ignore[reportCallIssue]


def served(part: nn.Module) -> ServedBackbone | ServedTask:
    """What of a part is worth serving: all features of a backbone, the logits of a task."""
    return (ServedBackbone(part) if isinstance(part, Backbone) else ServedTask(part)).eval()


def example(part: nn.Module, space: list[int]) -> dict[str, Tensor]:
    """Inputs of a batch of two, all zeros; ``spacing`` is among them where positions are in mm."""
    backbone = part if isinstance(part, Backbone) else part.backbone
    inputs = {"image": torch.zeros(2, backbone.in_channels, *space)}  # pyright: ignore
    if isinstance(backbone, ViT) and backbone.position_unit == "mm" and backbone.positions != "none":
        inputs["spacing"] = torch.ones(2, len(space))
    return inputs


def program_of(part: nn.Module, space: list[int]) -> torch.export.ExportedProgram:
    """The traced program, with a dynamic batch and without traces of this machine.

    Raises:
        UserError: the crop does not fit the model, so that nothing can be traced.
    """
    part = copy.deepcopy(part)
    for weight in (*part.parameters(), *part.buffers()):
        weight.data = weight.data.contiguous()  # torch.export.save takes other layouts for parts of larger tensors
    inputs, batch = example(part, space), torch.export.Dim("batch", min=1, max=65535)
    shapes = {name: {0: batch} for name in inputs}
    with torch.no_grad():
        program = torch.export.export(served(part), (), kwargs=inputs, dynamic_shapes=shapes, strict=False)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # names files of this machine
    return program
