"""``ssl-med embed``: one feature vector per image."""

from pathlib import Path


def embed(init: str | Path, data: str | Path, out: str | Path) -> Path:
    """Write the pooled features of every image of a store.

    Args:
        init: run or export folder with the backbone.
        data: the store.
        out: ``.parquet`` (columns id, split, label, feature) or ``.npz`` (arrays of these names).

    Returns:
        The file.

    Raises:
        UserError: another suffix.
    """
    import numpy as np

    from ssl_med.data.module import StoreData
    from ssl_med.errors import UserError
    from ssl_med.evaluate import best_device, embed_images
    from ssl_med.exports import load_backbone, read_card

    out, seen = Path(out), read_card(init)["input"]
    if out.suffix not in (".parquet", ".npz"):
        raise UserError(f"{out}: features are written as .parquet or .npz")
    module = StoreData(str(data), seen["crop"], intensity=seen["intensity"])
    backbone, rows = load_backbone(str(init)).to(best_device()).eval(), module.store.rows
    features, ids, labels = embed_images(backbone, module.whole("", backbone.multiple(), rows), module.crop)
    splits = [row.split for row in rows]
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}")
    if out.suffix == ".npz":
        with temporary.open("wb") as file:
            np.savez(file, id=np.array(ids), split=np.array(splits), label=labels, feature=features)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {"id": ids, "split": splits, "label": labels.tolist(), "feature": features.tolist()}
        pq.write_table(pa.table(columns), temporary)
    temporary.replace(out)
    print(f"{len(ids)} images, {features.shape[1]} features each: {out}")
    return out
