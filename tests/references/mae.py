"""The loss of the masked autoencoder (arXiv 2111.06377, section 3) in plain loops."""

import numpy as np

from references.patches import patchify


def mae_loss(
    image: np.ndarray,
    prediction: np.ndarray,
    unseen: np.ndarray,
    patch: tuple[int, ...],
    valid: np.ndarray | None = None,
    norm_pix: bool = True,
) -> float:
    """Mean squared error over the real voxels of hidden patches.

    Args:
        image: (b, c, *space).
        prediction: (b, h, voxels * c), rows in the order of ``unseen``.
        unseen: (b, h) numbers of the hidden patches.
        patch: voxels per patch.
        valid: (b, 1, *space), False in the padding.
        norm_pix: compare with patches standardised over their real voxels (unbiased variance, eps 1e-6).
    """
    patches = patchify(image.astype(np.float64), patch)
    real = np.ones(image.shape) if valid is None else np.broadcast_to(valid, image.shape)
    weights = patchify(real.astype(np.float64), patch)
    total, count = 0.0, 0
    for sample, hidden in enumerate(unseen):
        for row, number in enumerate(hidden):
            kept = weights[sample, number] > 0
            target = patches[sample, number][kept]
            if norm_pix and len(target):
                variance = target.var(ddof=1) if len(target) > 1 else 0.0
                target = (target - target.mean()) / np.sqrt(variance + 1e-6)
            total += ((prediction[sample, row][kept] - target) ** 2).sum()
            count += len(target)
    return total / max(count, 1)
