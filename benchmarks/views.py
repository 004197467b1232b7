"""Views of images on one thread of the CPU, beside others: ``python -m benchmarks.views [--rounds 7]``.

Two comparisons, each in turns in one process. DINO's 2 + 6 crops of 512 x 512 grey images with its changes of
brightness, contrast, blur and solarisation (lightly on RGB, as its dataset gives them, and on grey); rotation and scale
of 96^3 volumes (MONAI, torchio, batchgeneratorsv2 where they are installed). Ours work on whole batches; times are CPU
milliseconds an image.
"""

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import interleaved, machine, table
from ssl_med.ops.random import sample_keys
from ssl_med.transforms import Affine, Brightness, Contrast, GaussianBlur, MultiCrop, Solarize, Transform
from ssl_med.types import Batch

Makes = dict[str, tuple[Callable[[], object], int]]
"""Name -> what makes views, and of how many images at once."""


def grey_image(size: int) -> np.ndarray:
    """A smooth picture with noise, uint8."""
    rng = np.random.default_rng(0)
    low = Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(low, np.int16) + rng.normal(0, 4, (size, size)), 0, 255).astype(np.uint8)


def batch_of(image: torch.Tensor) -> Callable[[], Batch]:
    """Batches of one image repeated, with new keys each time."""
    count = iter(range(10**9))

    def make() -> Batch:
        return {"image": image, "key": sample_keys(next(count), torch.arange(len(image)))}

    return make


def changes(blur: float) -> list[Transform]:
    """What DINO does to a grey image: brightness and contrast for four in five, blur for a share."""
    return [Brightness((-0.4, 0.4), 0.8), Contrast((0.6, 1.4), 0.8), GaussianBlur((0.1, 2.0), blur)]


def multi_crop(batch: int) -> Makes:
    from lightly.transforms import DINOTransform

    picture = grey_image(512)
    image = torch.from_numpy(picture / np.float32(255))[None, None].repeat(batch, 1, 1, 1)
    shares: Any = {"local_count": 6, "global_share": 224 / 512, "local_share": 96 / 512}
    fresh, style = batch_of(image), MultiCrop(style="grey", **shares)
    views = MultiCrop(first=changes(1.0), second=[*changes(0.1), Solarize(0.5, 0.2)], local=changes(0.5), **shares)
    grey, colour, theirs = Image.fromarray(picture), Image.fromarray(picture).convert("RGB"), DINOTransform()
    return {
        "ssl_med": (lambda: views(fresh()), batch),
        "ssl_med, its own style for grey images": (lambda: style(fresh()), batch),
        "lightly DINOTransform, RGB (its default)": (lambda: theirs(colour), 1),
        "lightly DINOTransform, grey": (lambda: theirs(grey), 1),
    }


def turning(batch: int) -> Makes:
    from monai.transforms.spatial.array import RandAffine

    volume = torch.from_numpy(np.random.default_rng(0).random((1, 96, 96, 96), np.float32))
    fresh = batch_of(volume[None].repeat(batch, 1, 1, 1, 1))
    ours = Affine(rotation=28.6, scale=(0.8, 1.25))
    ranges: Any = {"rotate_range": (0.5,) * 3, "scale_range": (0.2,) * 3, "spatial_size": (96,) * 3}
    monai = RandAffine(prob=1, mode="bilinear", padding_mode="zeros", cache_grid=True, **ranges)
    found: Makes = {"ssl_med": (lambda: ours(fresh()), batch), "MONAI RandAffine": (lambda: monai(volume), 1)}
    if find_spec("torchio"):
        import torchio

        other, subject = torchio.RandomAffine(scales=(0.8, 1.25), degrees=28.6), torchio.ScalarImage(tensor=volume)
        found["torchio RandomAffine"] = (lambda: other(subject), 1)
    if find_spec("batchgeneratorsv2"):
        from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

        both: Any = {"rotation": (-0.5, 0.5), "scaling": (0.8, 1.25), "p_synchronize_scaling_across_axes": 1}
        third = SpatialTransform((96,) * 3, 0, False, p_rotation=1, p_scaling=1, **both)
        found["batchgeneratorsv2 SpatialTransform"] = (lambda: third(image=volume), 1)
    return found


def report(makes: Makes, rounds: int) -> str:
    found = interleaved({name: make for name, (make, _) in makes.items()}, rounds)
    lines, ours = [], found["ssl_med"][0] / makes["ssl_med"][1]
    for name, (_, images) in makes.items():
        median, low, high = (ms / images for ms in found[name])
        lines.append([name, median, f"{low:.3g} to {high:.3g}", median / ours])
    return table(["views", "CPU ms an image, median", "spread", "times ssl_med"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    crops, turns = report(multi_crop(arguments.batch), arguments.rounds), report(turning(2), arguments.rounds)
    print(f"{machine()}\n\n### 2 + 6 crops of 512 x 512, grey\n\n{crops}\n\n### Rotation and scale of 96^3\n\n{turns}")


if __name__ == "__main__":
    main()
