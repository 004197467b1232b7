"""Synthetic subjects: one real brain, moved and re-imaged by chance, with labels that are right by construction.

The brain is the symmetric MNI152 2009a template (average of 152 people, skull removed) with its tissue maps, which lies
inside the nilearn package (Fonov et al., NeuroImage 2011, doi:10.1016/j.neuroimage.2010.07.033). Its shape, contrast,
coil, slice thickness and noise are random. That teaches nothing about disease: it is for demos, tests and timings.
Arrays here are in NIfTI order (x, y, z), RAS; lengths are mm. Everything is a pure function of (seed, number).
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from nibabel import nifti1
from scipy.interpolate import PchipInterpolator, make_interp_spline
from scipy.ndimage import gaussian_filter, map_coordinates

from ssl_med.errors import UserError

FIELD_OF_VIEW = (192.0, 224.0, 192.0)  # mm; at 2 mm every axis is divisible by 16
NODE_MM = 6.0  # grid on which the velocity lives: finer than its smoothness, coarse enough to integrate in 0.1 s
SQUARINGS = 6

TISSUES_IN_T1 = (0.10, 0.28, 0.65, 0.86, 1.0)  # template intensity: darkest, CSF, grey, white, brightest
FAMILIES = {  # what another scanner protocol makes of the same five intensities, and how often it is used
    "A": ((0.15, 0.25, 0.60, 0.90, 1.00), 0.50),  # T1-like: CSF < grey < white
    "B": ((1.05, 0.95, 0.55, 0.35, 0.30), 0.25),  # T2-like: the reverse
    "C": ((0.10, 0.20, 0.90, 0.65, 0.55), 0.25),  # FLAIR-like: CSF < white < grey
}


@dataclass(frozen=True, eq=False)
class Template:
    """The brain all subjects come from, on its own 1 mm grid.

    Attributes:
        maps: (4, x, y, z) float32 in [0, 1]: T1 intensity (0 outside the brain), brain, grey matter, white matter.
        affine: 4 x 4, voxel -> RAS world mm; identity but for its origin.
    """

    maps: np.ndarray
    affine: np.ndarray

    @cached_property
    def centre(self) -> np.ndarray:
        """Middle of the brain's bounding box, in voxels (= mm from the first voxel)."""
        brain = self.maps[1] > 0.5
        filled = [np.flatnonzero(brain.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
        return np.array([(axis[0] + axis[-1]) / 2 for axis in filled])


@dataclass(frozen=True)
class Facts:
    """What was drawn for a subject: contrast family, spread of the log bias field, noise relative to white matter..."""

    site: str
    minimum_jacobian: float
    bias: float
    noise: float
    slice_mm: float


@dataclass(frozen=True)
class Subject:
    """A synthetic subject.

    Attributes:
        image: (x, y, z) int16, arbitrary scanner units.
        labels: (x, y, z) uint8: 0 background, 1 grey matter, 2 white matter, 3 cerebrospinal fluid.
        affine: 4 x 4, voxel -> RAS world mm.
        facts: what was drawn.
    """

    image: np.ndarray
    labels: np.ndarray
    affine: np.ndarray
    facts: Facts


@lru_cache(maxsize=1)
def load_template() -> Template:
    """The MNI152 template out of the installed nilearn package, which is found but not imported.

    The brain is where the T1 image is not zero: the skull is stripped already, and ventricles are not holes.

    Raises:
        UserError: nilearn is not installed, or its template is not the 1 mm one.
    """
    package = find_spec("nilearn")
    if package is None or package.origin is None:
        raise UserError('Synthetic subjects need the brain inside nilearn: python -m pip install "ssl_med[demo]"')
    folder = Path(package.origin).parent / "datasets" / "data"
    files = [folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz" for name in ("t1", "gm", "wm")]
    if not all(file.is_file() for file in files):
        raise UserError('This nilearn has no 1 mm MNI152 maps: python -m pip install "ssl_med[demo]" --upgrade')
    images = [nifti1.load(file) for file in files]
    t1, grey, white = (np.asarray(image.dataobj) for image in images)
    maps = np.stack([t1, np.where(t1 > 0, np.uint8(255), np.uint8(0)), grey, white])
    return Template(maps.astype(np.float32) / 255, np.asarray(images[0].affine))


@lru_cache(maxsize=2)
def smoothed_maps(template: Template, spacing_mm: float) -> np.ndarray:
    """The template's maps without the detail that a coarser grid cannot carry (Gaussian, FWHM^2 = spacing^2 - 1)."""
    sigma = np.sqrt(max(spacing_mm**2 - 1, 0)) / 2.355
    return np.stack([gaussian_filter(channel, sigma, truncate=3) for channel in template.maps])


def axis_points(spacing_mm: float) -> list[np.ndarray]:
    """Voxel centres of a subject's grid along x, y, z, in mm from the middle of the field of view."""
    counts = [round(length / spacing_mm) for length in FIELD_OF_VIEW]
    return [(np.arange(count) - (count - 1) / 2) * spacing_mm for count in counts]


def upsample(coarse: np.ndarray, positions: list[np.ndarray]) -> np.ndarray:
    """Cubic spline through ``coarse`` (..., i, j, k), at ``positions`` along each axis in units of its nodes."""
    for axis, where in enumerate(positions, start=coarse.ndim - 3):
        count = coarse.shape[axis]
        weights = make_interp_spline(np.arange(count), np.eye(count), k=3)(where).astype(np.float32)
        coarse = np.moveaxis(np.tensordot(weights, coarse, axes=(1, axis)), 0, axis)
    return coarse


def draw_velocity(random: np.random.Generator) -> np.ndarray:
    """Velocity (3, i, j, k) in mm on the nodes: white noise smoothed at two scales.

    Broad (30 mm) for the shape of the head and fine (12 mm) for that of gyri and ventricles, with a root mean square of
    1.5 to 4.5 and 1 to 2.5 mm along each axis.
    """
    shape = [int(np.ceil(length / NODE_MM)) + 1 for length in FIELD_OF_VIEW]
    velocity = np.zeros((3, *shape), np.float32)
    for scale, low, high in ((30.0, 1.5, 4.5), (12.0, 1.0, 2.5)):
        noise = random.standard_normal(velocity.shape, dtype=np.float32)
        smooth = gaussian_filter(noise, (0, *[scale / NODE_MM] * 3), mode="wrap")
        velocity += smooth / smooth.std() * random.uniform(low, high)
    return velocity


def integrate(velocity: np.ndarray) -> np.ndarray:
    """Displacement u = exp(v) - identity of a stationary velocity field, in mm on the same nodes.

    Scaling and squaring: u = v / 2^k, then k times u(x) <- u(x) + u(x + u(x)) (Arsigny et al., MICCAI 2006).
    """
    moved = (velocity / (NODE_MM * 2**SQUARINGS)).astype(np.float32)
    nodes = np.indices(velocity.shape[1:], dtype=np.float32)
    for _ in range(SQUARINGS):
        points = nodes + moved
        moved = moved + np.stack([map_coordinates(part, points, order=1, mode="nearest") for part in moved])
    return moved * NODE_MM


def draw_affine(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rotation of up to 8 degrees about each axis times scales of 0.92 to 1.1, (3, 3), and a shift of up to 5 mm."""
    matrix = np.diag(random.uniform(0.92, 1.1, 3))
    for axis, angle in enumerate(np.radians(random.uniform(-8, 8, 3))):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix.astype(np.float32), random.uniform(-5, 5, 3).astype(np.float32)


def warp(random: np.random.Generator, spacing_mm: float) -> tuple[np.ndarray, float]:
    """For every voxel of the subject the place in the template it shows, x -> A (x + u(x)) + t.

    Returns:
        points (3, x, y, z) in mm from the middle of the template's brain, and the least Jacobian determinant, which is
        positive: nothing folds.
    """
    axes = axis_points(spacing_mm)
    displacement = integrate(draw_velocity(random))
    middles = [(count - 1) / 2 for count in displacement.shape[1:]]
    moved = upsample(displacement, [axis / NODE_MM + middle for axis, middle in zip(axes, middles, strict=True)])
    moved += np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    matrix, shift = draw_affine(random)
    determinant = jacobian(moved, spacing_mm).min() * np.linalg.det(matrix)
    return np.tensordot(matrix, moved, axes=1) + shift[:, None, None, None], float(determinant)


def jacobian(points: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Determinant of the derivative of a map given as points (3, x, y, z) in mm, by central differences."""
    (a, b, c), (d, e, f), (g, h, i) = (np.gradient(part, spacing_mm) for part in points)
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def resample(maps: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The template's four maps at points (3, x, y, z) in its voxels, linearly; only the brain costs time."""
    brain = map_coordinates(maps[1], points, order=1)
    inside = brain > 0
    moved = np.zeros((len(maps), *brain.shape), np.float32)
    moved[1] = brain
    for number in (0, 2, 3):
        moved[number, inside] = map_coordinates(maps[number], points[:, inside], order=1)
    return moved


def tissue_labels(brain: np.ndarray, grey: np.ndarray, white: np.ndarray) -> np.ndarray:
    """The likeliest of background, grey, white and fluid (0 to 3); fluid is what of the brain is neither of the two."""
    fluid = np.clip(brain - grey - white, 0, None)
    return np.argmax(np.stack([1 - brain, grey, white, fluid]), axis=0).astype(np.uint8)


def draw_site(random: np.random.Generator) -> str:
    """A contrast family, also called site: A in half of the subjects, B and C in a quarter each."""
    return str(random.choice(list(FAMILIES), p=[share for _, share in FAMILIES.values()]))


def site_of(seed: int, number: int) -> str:
    """The site of a subject without making the subject."""
    return draw_site(random_streams(seed, number)[1])


def recolour(t1: np.ndarray, site: str, random: np.random.Generator) -> np.ndarray:
    """Another contrast: a smooth curve of the T1 intensity through the family's five values, each moved by up to 0.08.

    The curve (Fritsch and Carlson's, which adds no bumps) is monotone between the tissues, not over all of them.
    """
    values = np.array(FAMILIES[site][0]) + random.uniform(-0.08, 0.08, len(TISSUES_IN_T1))
    grid = np.linspace(TISSUES_IN_T1[0], 1, 256)
    table = PchipInterpolator(TISSUES_IN_T1, np.clip(values, 0.02, None))(grid)
    return np.interp(t1, grid, table).astype(np.float32)


def bias_field(shape: tuple[int, ...], spread: float, random: np.random.Generator) -> np.ndarray:
    """Smooth coil shading exp(b): b is the cubic through 4 x 4 x 4 random values, with mean 0 and std ``spread``."""
    coarse = random.standard_normal((4, 4, 4), dtype=np.float32)
    field = upsample(coarse, [np.linspace(0, 3, count) for count in shape])
    return np.exp((field - field.mean()) / field.std() * spread)


def rician(signal: np.ndarray, level: float, random: np.random.Generator) -> np.ndarray:
    """Magnitude of a complex signal with Gaussian noise of standard deviation ``level`` in both of its parts."""
    real, imaginary = random.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(level)
    return np.hypot(signal + real, imaginary)


def thicken(signal: np.ndarray, slice_voxels: float, axis: int) -> np.ndarray:
    """Slices ``slice_voxels`` thick along one axis: Gaussian profile with FWHM^2 = thickness^2 - 1 voxels^2."""
    sigma = [0.0, 0.0, 0.0]
    sigma[axis] = np.sqrt(slice_voxels**2 - 1) / 2.355
    return gaussian_filter(signal, sigma)


def acquire(signal: np.ndarray, spacing_mm: float, random: np.random.Generator) -> tuple[np.ndarray, dict[str, float]]:
    """What a scanner makes of an ideal image: shading, thick slices (half of the time), noise, its own units, int16."""
    bias, noise = random.uniform(0.05, 0.25), np.exp(random.uniform(np.log(0.01), np.log(0.06)))
    thickness = random.choice([1.0, random.uniform(1.5, 3.0)])
    signal = signal * bias_field(signal.shape, bias, random)
    signal = rician(thicken(signal, thickness, int(random.integers(3))), noise, random)
    scale = np.exp(random.uniform(np.log(200), np.log(3000)))
    image = np.clip(np.rint(signal * scale), 0, 32767).astype(np.int16)
    return image, {"bias": float(bias), "noise": float(noise), "slice_mm": float(thickness * spacing_mm)}


def random_streams(seed: int, number: int) -> list[np.random.Generator]:
    """Independent draws for a subject's shape, contrast and scanner."""
    return [np.random.default_rng([seed, number, step]) for step in range(3)]


def subject(template: Template, seed: int, number: int, spacing_mm: float = 2.0) -> Subject:
    """The subject called ``number`` of the cohort called ``seed``, the same whenever and wherever it is made.

    Args:
        template: from :func:`load_template`.
        seed: of the cohort, not negative.
        number: of the subject, not negative.
        spacing_mm: voxel size along every axis.
    """
    shape_draws, site_draws, scanner_draws = random_streams(seed, number)
    points, minimum_jacobian = warp(shape_draws, spacing_mm)
    points += template.centre.astype(np.float32)[:, None, None, None]
    t1, brain, grey, white = resample(smoothed_maps(template, spacing_mm), points)
    site = draw_site(site_draws)
    # at the rim a voxel is part air: the tissue's own intensity is recoloured, then mixed with air again
    ideal = recolour(t1 / np.maximum(brain, 1e-3), site, site_draws) * brain
    image, scanner = acquire(ideal, spacing_mm, scanner_draws)
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = template.affine[:3, 3] + template.centre + [axis[0] for axis in axis_points(spacing_mm)]
    facts = Facts(site=site, minimum_jacobian=minimum_jacobian, **scanner)
    return Subject(image, tissue_labels(brain, grey, white), affine, facts)
