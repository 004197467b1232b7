"""Several pretext tasks on one backbone.

No single objective wins both segmentation and classification (OpenMind, arXiv 2412.17041): reconstruction keeps what is
where, contrast and distillation keep what tells images apart. A hybrid minimises a weighted sum of both.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ssl_med.backbones import Backbone
from ssl_med.errors import UserError
from ssl_med.ops import ranks
from ssl_med.ops.random import fold
from ssl_med.recipe import instantiate, locate, nearest, new_parser
from ssl_med.tasks.base import Choice, Plan, PretextTask
from ssl_med.transforms.base import draws_of
from ssl_med.types import Batch, Losses

_PART_STREAM = 1 << 34
"""First child number of the parts, so that two parts of one kind do not draw the same views."""
_LEAST, _MOST = 0.1, 10.0
"""Bounds of what balancing multiplies a part's loss by: beyond, the gradient there is a poor measure of the part."""
_SILENT = 1e-6
"""A part whose gradient is smaller than this share of the largest has nothing to say of the batch."""


class Hybrid(PretextTask):
    """A weighted sum of tasks that share one backbone; each keeps its own views, heads and teachers.

    Args:
        backbone: shared by all parts; it is what is exported.
        parts: name -> ``{class_path, init_args}`` of a pretext task, without its backbone.
        weights: name -> factor on its loss; 1 where none is given.
        balance: divide each part's loss by the size of its gradient on the backbone's last layer (and multiply by the
            mean size), so that ``weights`` say how much each part pulls, whatever the scale of its loss. The factor
            stays within 0.1 and 10, and is 1 for a part whose gradient is 0; it is logged as ``NAME/factor``. Costs one
            more backward pass through the last layers for each part.

    Raises:
        ValueError: fewer than two parts, or a weight of a part that is not there.
        UserError: a part is no pretext task, or a setting of it is wrong.
    """

    def __init__(
        self,
        backbone: Backbone,
        parts: dict[str, dict[str, Any]],
        weights: dict[str, float] | None = None,
        balance: bool = False,
    ) -> None:
        super().__init__()
        if len(parts) < 2:
            raise ValueError(f"parts: a hybrid needs two tasks or more, got {list(parts)}")
        if unknown := [name for name in weights or {} if name not in parts]:
            raise ValueError(f"weights: there is no part {unknown[0]!r}; {nearest(unknown[0], list(parts))}")
        self.backbone, self.weights, self.balance = backbone, weights, balance
        self.parts = {name: plain(spec) for name, spec in parts.items()}
        self.tasks = nn.ModuleDict({name: build_part(name, spec, backbone) for name, spec in self.parts.items()})

    @classmethod
    def choose(cls, settings: Mapping[str, Any], plan: Plan) -> dict[str, Choice]:
        """What each part chooses, under ``parts.NAME.init_args.SETTING``."""
        chosen = {}
        for name, spec in settings["parts"].items():
            found = locate(spec["class_path"], f"parts.{name}").choose(spec.get("init_args") or {}, plan)
            chosen |= {f"parts.{name}.init_args.{setting}": choice for setting, choice in found.items()}
        return chosen

    def forward(self, batch: Batch, progress: float) -> Losses:
        """The weighted sum, and every entry of every part under ``NAME/``."""
        answers = {name: task(self._batch_for(name, batch), progress) for name, task in self._named()}
        entries = {f"{name}/{key}": value for name, losses in answers.items() for key, value in losses.items()}
        parts = {name: losses["loss"] * (self.weights or {}).get(name, 1.0) for name, losses in answers.items()}
        if self.balance and torch.is_grad_enabled():
            factors = self._factors({name: losses["loss"] for name, losses in answers.items()})
            parts = {name: factors[name] * part for name, part in parts.items()}
            entries |= {f"{name}/factor": factor for name, factor in factors.items()}
        return {"loss": torch.stack(list(parts.values())).sum(), **entries}

    def _named(self) -> list[tuple[str, PretextTask]]:
        return cast("list[tuple[str, PretextTask]]", list(self.tasks.items()))

    def _batch_for(self, name: str, batch: Batch) -> Batch:
        number = list(self.parts).index(name)
        return cast(Batch, {**batch, "key": fold(draws_of(batch).keys, _PART_STREAM + number)})

    def _factors(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """What makes the gradients of the parts equally large, within bounds; 1 for a part without a gradient."""
        last = [p for p in self.backbone.layers()[-1] if p.requires_grad]
        sizes = torch.stack([_gradient_size(loss, last) for loss in losses.values()])
        speaks = sizes > _SILENT * sizes.max()
        mean = (sizes * speaks).sum() / speaks.sum().clamp(min=1)
        factors = torch.where(speaks, (mean / sizes).clamp(_LEAST, _MOST), 1.0)
        return dict(zip(losses, factors.unbind(), strict=True))

    def after_step(self, progress: float) -> None:
        """Each part's."""
        for _, task in self._named():
            task.after_step(progress)

    def vital_signs(self, batch: Batch) -> dict[str, Tensor]:
        """Each part's, under ``NAME/``."""
        return {
            f"{name}/{sign}": value
            for name, task in self._named()
            for sign, value in task.vital_signs(self._batch_for(name, batch)).items()
        }

    def verdict(self, signs: Mapping[str, float]) -> str:
        """The parts' verdicts, with their names."""
        found = []
        for name, task in self._named():
            own = {sign.removeprefix(f"{name}/"): value for sign, value in signs.items()}
            if words := task.verdict(own):
                found.append(f"{name}: {words}")
        return "; ".join(found)

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Each part's, under its name."""
        return {
            f"{name}: {title}": picture
            for name, task in self._named()
            for title, picture in task.pictures(self._batch_for(name, batch)).items()
        }

    def exports(self) -> dict[str, nn.Module]:
        """The shared backbone, and what else the parts keep under ``NAME_PART``."""
        others = {
            f"{name}_{part}": module
            for name, task in self._named()
            for part, module in task.exports().items()
            if part != "backbone"
        }
        return {"backbone": self.backbone, **others}

    def layers(self) -> list[list[nn.Parameter]]:
        """The backbone's; heads count as last."""
        return self.backbone.layers()


def _gradient_size(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """Norm of the gradient of a loss, the mean over all processes; 0 where it does not depend on the parameters."""
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    squares = [gradient.detach().float().square().sum() for gradient in found if gradient is not None]
    return ranks.mean(torch.stack(squares).sum().sqrt() if squares else loss.new_zeros(()))


def build_part(name: str, spec: Mapping[str, Any], backbone: Backbone) -> PretextTask:
    """A task from its recipe, on a backbone that exists already.

    Raises:
        UserError: the class is no pretext task, or a setting is wrong.
    """
    cls = locate(str(spec.get("class_path")), f"parts.{name}.class_path")
    if not (isinstance(cls, type) and issubclass(cls, PretextTask)):
        raise UserError(f"parts.{name}: {spec.get('class_path')} is no pretext task")
    parser = new_parser()
    parser.add_class_arguments(cls, "settings", skip={"backbone"}, instantiate=False)
    settings = instantiate(parser, {"settings": dict(spec.get("init_args") or {})})
    return cls(backbone, **vars(settings["settings"]))


def plain(value: Any) -> Any:
    """Plain dicts and lists: the config's parser leaves namespaces where a recipe stands in a free dictionary."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    items = vars(value) if type(value).__name__ == "Namespace" else value
    return {name: plain(item) for name, item in items.items()} if isinstance(items, Mapping) else value
