"""Does the watch see a collapse, and only a collapse? ``python -m benchmarks.health STORE --out DIR``.

Every family of tasks is trained as it should be, several times (no alarm is expected), and with one fault each: no
variance term, a learning rate far too high, and so on. The table says after how many steps the alarm came, and its
words. The judgement is that of :class:`ssl_med.callbacks.watch.Health`. Repeating the command goes on where it stopped.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ssl_med.backbones import Backbone, UNetEncoder, ViT
from ssl_med.callbacks.watch import judge_features
from ssl_med.data.module import StoreData
from ssl_med.files import write_json
from ssl_med.ops.collapse import effective_rank, feature_spread
from ssl_med.optim import clip_each
from ssl_med.tasks import BYOL, DINO, MAE, MoCoV3, ModelsGenesis, PretextTask, SimCLR, SSiT, VICReg
from ssl_med.tasks.base import Plan
from ssl_med.types import Batch


@dataclass(frozen=True)
class Drill:
    """One way to train a family.

    Attributes:
        fault: what is wrong, in words; empty for a healthy training.
        settings: of the task, beside those of the family.
        rate: factor on the learning rate.
    """

    fault: str
    settings: dict[str, Any]
    rate: float = 1.0


@dataclass(frozen=True)
class Family:
    """A kind of task, small, and what can go wrong with it.

    Attributes:
        task: its class.
        settings: of the small task.
        faults: trainings that must give an alarm.
        unet: whether it trains a U-Net's encoder, not a ViT.
    """

    task: type[PretextTask]
    settings: dict[str, Any]
    faults: tuple[Drill, ...]
    unet: bool = False


RATE, WARMUP = 1e-3, 0.1
_HIGH = Drill("learning rate x 100", {}, 100.0)
_NO_TEACHER = Drill("momentum 0", {"momentum": 0.0})
_SIGNS = ("feature_spread", "effective_rank")
_SMALL_HEADS = {"hidden_dim": 64, "out_dim": 32}
FAMILIES = {
    "MAE": Family(MAE, {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}, (_HIGH,)),
    "ModelsGenesis": Family(ModelsGenesis, {"widths": (8, 16)}, (_HIGH,), unet=True),
    "SimCLR": Family(SimCLR, _SMALL_HEADS, (_HIGH,)),
    "MoCoV3": Family(MoCoV3, _SMALL_HEADS, (_NO_TEACHER, _HIGH)),
    "SSiT": Family(SSiT, {**_SMALL_HEADS, "pooling": "mean", "segmentation_weight": 1.0}, (_NO_TEACHER, _HIGH)),
    "VICReg": Family(VICReg, {"out_dim": 64}, (Drill("no variance term", {"variance": 0.0, "covariance": 0.0}), _HIGH)),
    "BYOL": Family(BYOL, _SMALL_HEADS, (_NO_TEACHER, _HIGH)),
    "DINO": Family(
        DINO,
        {},
        (
            Drill("no centring", {"centre_momentum": 1.0, "koleo": 0.0}),
            Drill("no centring, momentum 0", {"centre_momentum": 1.0, "momentum": 0.0, "koleo": 0.0}),
            _NO_TEACHER,
            _HIGH,
        ),
    ),
}


@dataclass(frozen=True)
class Told:
    """What came of a training.

    Attributes:
        family, fault, seed: which.
        step: of the first alarm; None without one.
        alarm: its words.
        signs: of the last look.
    """

    family: str
    fault: str
    seed: int
    step: int | None
    alarm: str
    signs: dict[str, float]


def task_of(family: Family, drill: Drill, backbone: Backbone, plan: Plan, seed: int = 0) -> PretextTask:
    """The task of a drill, its weights seeded; what is left open is chosen as for a run."""
    torch.manual_seed(seed)
    asked = {**family.settings, **drill.settings}
    chosen = {name: choice.value for name, choice in family.task.choose(asked, plan).items() if name not in asked}
    return family.task(backbone, **asked, **chosen)


def first_alarm(
    task: PretextTask, batches: Iterable[Batch], steps: int, judged: Batch, rate: float, every: int
) -> tuple[int | None, str, dict[str, float]]:
    """Train with warm-up and cosine as a run does; the step of the first alarm, its words, and the last signs."""
    signs: dict[str, float] = {}
    parameters = [p for p in task.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate)
    for step, batch in enumerate(islice(batches, steps), 1):
        progress = (step - 1) / steps
        optimiser.param_groups[0]["lr"] = rate * task.rates(progress, WARMUP).trunk
        optimiser.zero_grad()
        task(batch, progress)["loss"].backward()
        clip_each(parameters, 3.0)
        optimiser.step()
        task.after_step(step / steps)
        if step % every:
            continue
        alarm, signs = judged_by_watch(task, judged)
        if alarm:
            return step, alarm, signs
    return None, "", signs


@torch.no_grad()
def judged_by_watch(task: PretextTask, batch: Batch) -> tuple[str, dict[str, float]]:
    """The verdict that a run would log at this moment, and the signs that it judges."""
    task.eval()
    backbone: Any = task.exports()["backbone"]
    features = backbone(batch["image"], batch.get("spacing")).pooled
    signs = {"feature_spread": feature_spread(features), "effective_rank": effective_rank(features)}
    numbers = {name: float(value) for name, value in {**signs, **task.vital_signs(batch)}.items()}
    task.train()
    return judge_features(numbers) or task.verdict(numbers), numbers


def drills(name: str, healthy: int) -> Iterator[tuple[Drill, int]]:
    """Every training of a family and its seed."""
    yield from ((Drill("", {}), seed) for seed in range(healthy))
    yield from ((drill, 0) for drill in FAMILIES[name].faults)


def table(results: list[Told], every: int, steps: int) -> str:
    """Family, fault, steps to the alarm and its words; healthy trainings in one line each."""
    lines = ["| family | fault | steps to alarm | spread, rank | alarm |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(told.family for told in results):
        sound = [told for told in results if told.family == name and not told.fault]
        alarms = [told for told in sound if told.step is not None]
        words = alarms[0].alarm if alarms else ""
        lowest = [min(told.signs[sign] for told in sound) for sign in _SIGNS] if sound else []
        lines.append(
            f"| {name} | none, {len(sound)} runs | {len(alarms)} alarms | {_short(lowest)} at least | {words} |"
        )
        for told in results:
            if told.family == name and told.fault:
                signs = _short([told.signs[sign] for sign in _SIGNS])
                lines.append(f"| {name} | {told.fault} | {told.step or 'no alarm'} | {signs} | {told.alarm} |")
    return "\n".join([*lines, "", f"Looked at every {every} of {steps} steps.", ""])


def _short(numbers: list[float]) -> str:
    return ", ".join(f"{number:.2g}" for number in numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--healthy", type=int, default=20)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--crop", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=16)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = [
        one(arguments, name, drill, seed)
        for name in arguments.families
        for drill, seed in drills(name, arguments.healthy)
    ]
    text = table(results, arguments.every, arguments.steps)
    (arguments.out / "table.md").write_text(text)
    print(text)


def one(arguments: argparse.Namespace, name: str, drill: Drill, seed: int) -> Told:
    """One training, or what was noted of it earlier under the same settings."""
    called = f"{name}_{drill.fault or 'healthy'}_{seed}_{arguments.steps}_{arguments.every}".replace(" ", "-")
    path = arguments.out / f"{called}_{arguments.crop}_{arguments.batch_size}.json"
    if path.is_file():
        return Told(**json.loads(path.read_text()))
    data = StoreData(str(arguments.store), arguments.crop, arguments.batch_size, seed=seed)
    torch.manual_seed(seed)
    axes, channels = data.store.spatial_dims, data.channels
    if FAMILIES[name].unet:
        backbone = UNetEncoder(axes, channels, widths=(8, 16, 32), blocks=1)
    else:
        patch = max(2, arguments.crop // 8)
        backbone = ViT(axes, patch, channels, embed_dim=64, depth=3, heads=4, taps=1, positions="sincos")
    plan = Plan(len(data.rows("train")), arguments.batch_size, arguments.steps)
    task, dataset = task_of(FAMILIES[name], drill, backbone, plan, seed), data.crops()
    judged = dataset.collate([dataset[position] for position in range(32)])
    told = first_alarm(task, iter(data.loader()), arguments.steps, judged, RATE * drill.rate, arguments.every)
    result = Told(name, drill.fault, seed, *told)
    write_json(path, asdict(result))
    return result


if __name__ == "__main__":
    main()
