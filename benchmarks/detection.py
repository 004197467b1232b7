"""Does detection work, and what does pretraining buy: ``python -m benchmarks.detection OUT [--subjects 40]``.

Synthetic lesions in synthetic subjects (:mod:`ssl_med.data.lesions`): a small ViT pretrained on the training images by
MAE, then fine-tuned on boxes, beside the same from scratch. Prints mAP and FROC of both on the test subjects.
"""

import argparse
import math
from pathlib import Path

from ssl_med.data.lesions import write_lesions
from ssl_med.run_folder import is_finished
from ssl_med.verbs.finetune import finetune
from ssl_med.verbs.prepare import prepare
from ssl_med.verbs.pretrain import pretrain

SCORES = ("map_10", "map_50", "froc", "sensitivity_at_1")
PRETRAINING = {
    "task.backbone.init_args.patch": 4,
    "task.backbone.init_args.embed_dim": 96,
    "task.backbone.init_args.depth": 4,
    "task.backbone.init_args.heads": 4,
    "task.decoder_dim": 48,
    "task.decoder_depth": 1,
    "task.decoder_heads": 4,
    "data.crop": 32,
    "watch.probes": 0,
    "watch.health": 1,
    "watch.pictures": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", type=int, default=40)
    parser.add_argument("--pretrain-steps", type=int, default=200)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--labels", type=int, help="labelled patients; all by default")
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    scans, store, base = given.out / "scans", given.out / "store", given.out / "pretrain"
    if not (scans / "manifest.csv").exists():
        write_lesions(scans, given.subjects)
    prepare(scans, store, columns={"boxes_mm": "tables/boxes.csv"})
    settings = {**PRETRAINING, "trainer.max_steps": given.pretrain_steps, "trainer.log_every_n_steps": 10}
    if not is_finished(base, settings):
        pretrain("demo_mae_3d", store, base, settings)
    out, length = given.out / "finetune", {"trainer.max_steps": given.steps}
    found = finetune("demo_detect_3d", store, base, out, given.labels, given.seeds, compare=True, overrides=length)
    print("\n".join(lines(found)))


def lines(found: dict) -> list[str]:
    """A Markdown table: a line for each run."""
    table = ["| arm | labels | seed | " + " | ".join(SCORES) + " |", "|---" * (3 + len(SCORES)) + "|"]
    for row in found["rows"]:
        scores = [row["scores"][name] for name in SCORES]
        told = " | ".join("-" if math.isnan(value) else f"{value:.3f}" for value in scores)
        table.append(f"| {row['arm']} | {row['labels']} | {row['seed']} | {told} |")
    return table


if __name__ == "__main__":
    main()
