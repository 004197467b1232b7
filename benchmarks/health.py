"""Does the watch see a collapse, and only a collapse? ``python -m benchmarks.health STORE --out DIR``.

Every family of tasks is trained as it should be, several times (no alarm is expected), and with one fault each: no
variance term, a learning rate far too high, and so on. The table says after how many steps the alarm came, and its
words. The judgement is that of :class:`ssl_med.callbacks.watch.Health`. Repeating the command goes on where it stopped.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ssl_med.backbones import ViT
from ssl_med.callbacks.watch import judge_features
from ssl_med.data.module import StoreData
from ssl_med.files import write_json
from ssl_med.ops.collapse import effective_rank, feature_spread
from ssl_med.optim import clip_each
from ssl_med.tasks import BYOL, DINO, MAE, PretextTask, SimCLR, VICReg
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
    """

    task: Callable[..., PretextTask]
    settings: dict[str, Any]
    faults: tuple[Drill, ...]


RATE = 1e-3
_HIGH = Drill("learning rate x 1000", {}, 1000.0)
FAMILIES = {
    "MAE": Family(MAE, {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}, (_HIGH,)),
    "SimCLR": Family(SimCLR, {"hidden_dim": 64, "out_dim": 32, "temperature": 0.5}, (_HIGH,)),
    "VICReg": Family(VICReg, {"out_dim": 64}, (Drill("no variance term", {"variance": 0.0, "covariance": 0.0}), _HIGH)),
    "BYOL": Family(BYOL, {"hidden_dim": 64, "out_dim": 32, "momentum": 0.9}, (_HIGH,)),
    "DINO": Family(
        DINO,
        {"prototypes": 64, "hidden_dim": 64, "bottleneck_dim": 32, "momentum": 0.9, "koleo": 0.1, "freeze_last": 0.0},
        (Drill("no centring", {"centre_momentum": 1.0, "momentum": 0.0, "koleo": 0.0}, 10.0), _HIGH),
    ),
}


@dataclass(frozen=True)
class Told:
    """What came of a training.

    Attributes:
        family, fault, seed: which.
        step: of the first alarm; None without one.
        alarm: its words.
    """

    family: str
    fault: str
    seed: int
    step: int | None
    alarm: str


def task_of(family: Family, drill: Drill, backbone: ViT, seed: int = 0) -> PretextTask:
    """The task of a drill, its weights seeded."""
    torch.manual_seed(seed)
    return family.task(backbone, **{**family.settings, **drill.settings})


def first_alarm(
    task: PretextTask, batches: Iterable[Batch], steps: int, judged: Batch, rate: float, every: int
) -> tuple[int | None, str]:
    """Train; the step of the first alarm and its words, looked for every few steps."""
    parameters = [p for p in task.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate)
    for step, batch in enumerate(islice(batches, steps), 1):
        optimiser.zero_grad()
        task(batch, (step - 1) / steps)["loss"].backward()
        clip_each(parameters, 3.0)
        optimiser.step()
        task.after_step(step / steps)
        if step % every == 0 and (alarm := judged_by_watch(task, judged)):
            return step, alarm
    return None, ""


@torch.no_grad()
def judged_by_watch(task: PretextTask, batch: Batch) -> str:
    """The verdict that a run would log at this moment."""
    task.eval()
    backbone: Any = task.exports()["backbone"]
    features = backbone(batch["image"], batch.get("spacing")).pooled
    signs = {"feature_spread": feature_spread(features), "effective_rank": effective_rank(features)}
    numbers = {name: float(value) for name, value in {**signs, **task.vital_signs(batch)}.items()}
    task.train()
    return judge_features(numbers) or task.verdict(numbers)


def drills(name: str, healthy: int) -> Iterator[tuple[Drill, int]]:
    """Every training of a family and its seed."""
    yield from ((Drill("", {}), seed) for seed in range(healthy))
    yield from ((drill, 0) for drill in FAMILIES[name].faults)


def table(results: list[Told], every: int, steps: int) -> str:
    """Family, fault, steps to the alarm and its words; healthy trainings in one line each."""
    lines = ["| family | fault | steps to alarm | alarm |", "|---|---|---|---|"]
    for name in dict.fromkeys(told.family for told in results):
        sound = [told for told in results if told.family == name and not told.fault]
        alarms = [told for told in sound if told.step is not None]
        words = alarms[0].alarm if alarms else ""
        lines.append(f"| {name} | none, {len(sound)} healthy runs | {len(alarms)} alarms | {words} |")
        for told in results:
            if told.family == name and told.fault:
                lines.append(f"| {name} | {told.fault} | {told.step or 'no alarm'} | {told.alarm} |")
    return "\n".join([*lines, "", f"Looked at every {every} of {steps} steps.", ""])


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
    told = f"{name}_{drill.fault or 'healthy'}_{seed}_{arguments.steps}_{arguments.every}".replace(" ", "-")
    path = arguments.out / f"{told}_{arguments.crop}_{arguments.batch_size}.json"
    if path.is_file():
        return Told(**json.loads(path.read_text()))
    data = StoreData(str(arguments.store), arguments.crop, arguments.batch_size, seed=seed)
    patch = max(2, arguments.crop // 8)
    torch.manual_seed(seed)
    axes, channels = data.store.spatial_dims, data.channels
    backbone = ViT(axes, patch, channels, embed_dim=64, depth=3, heads=4, taps=1, positions="sincos")
    task, dataset = task_of(FAMILIES[name], drill, backbone, seed), data.crops()
    judged = dataset.collate([dataset[position] for position in range(32)])
    step, alarm = first_alarm(task, iter(data.loader()), arguments.steps, judged, RATE * drill.rate, arguments.every)
    result = Told(name, drill.fault, seed, step, alarm)
    write_json(path, asdict(result))
    return result


if __name__ == "__main__":
    main()
