"""What will be run: numbers of labels, draws, seeds, arms, and who is compared with whom."""

from collections.abc import Sequence
from dataclasses import dataclass

from ssl_med.errors import UserError

PRETRAINED, SCRATCH, LONGER, FROZEN, KNN = "pretrained", "scratch", "scratch_longer", "frozen", "knn"
FROZEN_CONTROL, KNN_CONTROL = "frozen_random", "knn_random"
ARMS = (PRETRAINED, SCRATCH, LONGER, FROZEN, KNN)
DEFAULT_LABELS = ("1%", "5%", "10%", "25%", "50%", "100%")
SEEDS_PER_DRAW = 1000  # so that more seeds can be added to a draw later and no two runs share one


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        arm: its name.
        labels: labelled patients it trains on.
        draw: which nested series of patients.
        seed: which repetition within the draw.
    """

    arm: str
    labels: int
    draw: int
    seed: int

    @property
    def training_seed(self) -> int:
        """Of the weights, the order and the crops: another one for every draw, also where all patients are used."""
        return SEEDS_PER_DRAW * self.draw + self.seed

    def __str__(self) -> str:
        return f"{self.arm}, {self.labels} labels, draw {self.draw}, seed {self.seed}"


@dataclass(frozen=True)
class Comparison:
    """``arm`` minus ``baseline``."""

    arm: str
    baseline: str


def comparisons(arms: Sequence[str]) -> list[Comparison]:
    """Who is compared with whom, of the arms that there are; the first is the question of the study."""
    extra = [arm for arm in arms if arm not in (*ARMS, FROZEN_CONTROL, KNN_CONTROL)]
    pairs = [(PRETRAINED, SCRATCH), (PRETRAINED, LONGER)]
    pairs += [pair for arm in extra for pair in ((arm, SCRATCH), (PRETRAINED, arm))]
    pairs += [(FROZEN, FROZEN_CONTROL), (KNN, KNN_CONTROL)]
    return [Comparison(*pair) for pair in pairs if set(pair) <= set(arms)]


def label_counts(asked: Sequence[str], patients: int, least: int = 1) -> tuple[list[int], list[str]]:
    """Numbers of labelled patients, rising, and a sentence for each that was dropped.

    Args:
        asked: ``25`` (patients), ``10%``, ``0.1`` (shares) or ``all``.
        patients: labelled ones in the training split.
        least: patients that the task needs.

    Raises:
        UserError: no such number or share, or none is left.
    """
    counts: dict[int, str] = {}
    told = []
    for text in asked:
        count = _count(text, patients)
        if count > patients:
            raise UserError(f"--labels {text}: the training split has {patients} labelled patients")
        if count < least:
            told.append(f"{text} of {patients} patients is {count}, the task needs {least}: left out")
        elif count in counts:
            told.append(f"{text} of {patients} patients is {count}, as is {counts[count]}: run once")
        else:
            counts[count] = text
    if not counts:
        raise UserError(f"--labels {','.join(asked)}: none is left ({'; '.join(told)}); give larger ones")
    return sorted(counts), told


def _count(text: str, patients: int) -> int:
    try:
        if text == "all":
            return patients
        if text.endswith("%") or "." in text:
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
            if not 0 < share <= 1:
                raise ValueError
            return max(1, round(share * patients))
        if int(text) < 1:
            raise ValueError
        return int(text)
    except ValueError:
        raise UserError(f"--labels {text!r} is no number of patients (25), share (10% or 0.1) or 'all'") from None


def plan_jobs(arms: Sequence[str], labels: Sequence[int], draws: int, seeds: int) -> list[Job]:
    """All runs: draw by draw, so that a study that is stopped has whole curves."""
    if draws < 1 or seeds < 1:
        raise UserError(f"--draws {draws} --seeds {seeds}: at least one of each")
    return [
        Job(arm, count, draw, seed)
        for draw in range(draws)
        for seed in range(seeds)
        for count in labels
        for arm in arms
    ]
