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


class Hybrid(PretextTask):
    """A weighted sum of tasks that share one backbone; each keeps its own views, heads and teachers.

    Args:
        backbone: shared by all parts; it is what is exported.
        parts: name -> ``{class_path, init_args}`` of a pretext task, without its backbone.
        weights: name -> factor on its loss; 1 where none is given.
        balance: divide each part's loss by the size of its gradient on the backbone's last layer (and multiply by the
            mean size), so that ``weights`` say how much each part pulls, whatever the scale of its loss. Costs one more
            backward pass through the last layers for each part.
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
        factors = self._factors({name: losses["loss"] for name, losses in answers.items()})
        total = torch.stack([factors[name] * losses["loss"] for name, losses in answers.items()]).sum()
        entries = {f"{name}/{key}": value for name, losses in answers.items() for key, value in losses.items()}
        return {"loss": total, **entries}

    def _named(self) -> list[tuple[str, PretextTask]]:
        return cast("list[tuple[str, PretextTask]]", list(self.tasks.items()))

    def _batch_for(self, name: str, batch: Batch) -> Batch:
        number = list(self.parts).index(name)
        return cast(Batch, {**batch, "key": fold(draws_of(batch).keys, _PART_STREAM + number)})

    def _factors(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weight of each part, times what makes the gradients equally large if that is asked for."""
        weights = {name: loss.new_tensor((self.weights or {}).get(name, 1.0)) for name, loss in losses.items()}
        if not self.balance or not torch.is_grad_enabled():
            return weights
        last = [p for p in self.backbone.layers()[-1] if p.requires_grad]
        sizes = {}
        for name, loss in losses.items():
            gradients = torch.autograd.grad(loss, last, retain_graph=True, allow_unused=True)
            squares = [g.detach().float().square().sum() for g in gradients if g is not None]
            sizes[name] = ranks.mean(torch.stack(squares).sum().sqrt() if squares else loss.new_zeros(()))
        mean = torch.stack(list(sizes.values())).mean()
        return {name: weights[name] * mean / sizes[name].clamp(min=1e-12) for name in losses}

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
