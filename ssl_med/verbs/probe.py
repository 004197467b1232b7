"""``ssl-med probe``: what a frozen backbone knows, beside random weights."""

from pathlib import Path


def probe(
    init: str | Path, data: str | Path, targets: str | None = None, split: str = "test", crops: int = 64, seed: int = 0
) -> dict[str, float]:
    """kNN and linear scores (balanced accuracy) of an exported backbone on the labels of a store.

    Image labels: each image is a case. Masks: each cell of the backbone's coarsest map is a case. Trained on the
    training split, tested on ``split``; the same backbone with random weights stands beside it.

    Args:
        init: run or export folder.
        data: a store with labels.
        targets: ``label`` or ``mask``; found by itself where the store has one kind.
        split: whose images are tested.
        crops: crops per split where labels are masks.
        seed: of the crops and of the random weights.

    Returns:
        ``knn``, ``linear`` and both with ``_random``.
    """
    from ssl_med.data.module import StoreData
    from ssl_med.data.store import Store
    from ssl_med.errors import UserError
    from ssl_med.evaluate import best_device, random_twin
    from ssl_med.evaluate import probe as probe_backbone
    from ssl_med.exports import load_backbone, read_card

    store, seen = Store(data), read_card(init)["input"]
    if targets is None:
        targets = "label" if any(row.label >= 0 for row in store.rows) else "mask"
    if targets == "mask" and not any(row.has_mask for row in store.rows):
        raise UserError(f"{data} has neither labels nor masks to probe with")
    module = StoreData(str(data), seen["crop"], intensity=seen["intensity"], targets=targets, seed=seed)  # pyright: ignore
    backbone = load_backbone(str(init)).to(best_device()).eval()
    scores = probe_backbone(backbone, module, split, crops)
    twin = probe_backbone(random_twin(backbone, seed).eval(), module, split, crops)
    scores |= {f"{name}_random": value for name, value in twin.items()}
    for name in ("knn", "linear"):
        print(
            f"{name:7} {scores[name]:.3f}   random weights {scores[f'{name}_random']:.3f}   balanced accuracy, {split}"
        )
    return scores
