"""A folder without a table: what its tree, its folder names and its files say of the images in it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ssl_med.data.layouts.base import File, Kind, Layout, Plan, name_of, split_of
from ssl_med.data.layouts.classes import Folders, are_classes, group_of, meaningful, patient_of
from ssl_med.data.layouts.dataset_json import Dataset, cases, read_dataset
from ssl_med.data.layouts.expand import GROUPED_TOGETHER, array_classes, image_records, series_records
from ssl_med.data.layouts.ignored import notes_of
from ssl_med.data.layouts.masks import mask_of
from ssl_med.data.layouts.walk import Leaf, leaves
from ssl_med.data.readers import READERS
from ssl_med.data.record import Record
from ssl_med.errors import UserError

_PICTURES = {"raster", "array"}
"""Readers of files whose folders may be classes without being asked; folders of volumes are patients or sites."""

_FEWEST_FRAMES = 8
"""Fewer numbered pictures in a folder are pictures."""


@dataclass
class _Census:
    """Counts of a first pass over names; its size does not grow with the number of images."""

    readers: Counter[str] = field(default_factory=Counter)
    masks: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    locked: int = 0
    folders: Folders = field(default_factory=Folders)
    clips: int = 0
    array_classes: set[tuple[str, ...]] = field(default_factory=set)

    def add(self, leaf: Leaf, folder: Path) -> None:
        self.readers.update(file.reader for file in leaf.images)
        self.masks += leaf.masks
        self.ignored += leaf.ignored
        self.locked += leaf.locked
        self.folders.add(leaf.parts, len(leaf.images))
        self.clips += _is_clip(leaf, folder)
        for file in leaf.images:
            if file.path.suffix.lower() == ".npz":
                self.array_classes.add(array_classes(file.path))


@dataclass(frozen=True)
class _Tree:
    """How the folders of a tree are read.

    Attributes:
        kind: ``imagefolder``: their first level is the class; ``patients``: the level ``depth`` is the patient;
            ``tree``: they say nothing.
        clips: folders of numbered frames are one image each.
    """

    folder: Path
    kind: Kind
    depth: int
    classes: tuple[str, ...]
    dataset: Dataset
    clips: bool
    together: bool

    def records(self) -> Iterator[Record]:
        """All images: first all that are no DICOM, in the order of the tree, then the DICOM series."""
        slices = False
        for leaf in leaves(self.folder):
            slices |= any(file.reader == "dicom" for file in leaf.images)
            yield from self._of_leaf(leaf)
        if slices:
            found = (file for leaf in leaves(self.folder) for file in leaf.images if file.reader == "dicom")
            yield from series_records(found, self.folder, self._record, self.together)

    def _of_leaf(self, leaf: Leaf) -> Iterator[Record]:
        files = [file for file in leaf.images if file.reader != "dicom"]
        if self.clips and _is_clip(leaf, self.folder):
            from ssl_med.data.readers.frames import in_order

            yield replace(self._record(files[0]), reader="frames", files=in_order(file.path for file in files))
            return
        for members in cases(files, self.folder, self.dataset):
            record = self._record(members[0])
            if len(members) > 1:
                record = replace(record, reader="stack", files=tuple(file.path for file in members))
            mask = leaf.beside.get(members[0].path) or mask_of(members[0].path, self.folder)
            yield from image_records(replace(record, mask=mask))

    def _record(self, file: File) -> Record:
        """What the path alone says."""
        path = file.path
        parts = path.relative_to(self.folder).parts[:-1] if path != self.folder else ()
        inner = meaningful(parts)
        label, patient = -1, patient_of(parts)
        if self.kind == "imagefolder" and inner:
            label = self.classes.index(inner[0])
            patient = patient or (inner[1] if len(inner) > 1 else "")
        elif self.kind == "patients":
            patient = patient or group_of(parts, self.depth)
        return Record(
            name=name_of(path, self.folder),
            reader=file.reader,
            files=(path,),
            label=label,
            patient=patient,
            split=split_of(parts),
            modality=self.dataset.modality,
        )


def plan_tree(folder: Path, kind: Kind = "auto") -> Plan:
    """Understand a folder, or one file, from its names alone.

    Args:
        folder: the data folder.
        kind: what a person says of its folders.

    Raises:
        UserError: a broken ``dataset.json``, or ``imagefolder`` for a folder without folders.
    """
    census, dataset = _Census(), read_dataset(folder)
    for leaf in leaves(folder):
        census.add(leaf, folder)
    kind, clips = _decide(census, kind, nnunet=(folder / "imagesTr").is_dir())
    classes = _class_names(census, kind)
    together = census.readers["dicom"] <= GROUPED_TOGETHER
    tree = _Tree(folder, kind, census.folders.depth() or 0, classes, dataset, clips, together)
    return Plan(_layout(folder, census, tree), tree.records)


def _decide(census: _Census, kind: Kind, nnunet: bool) -> tuple[Kind, bool]:
    """What the folders are, and whether folders of numbered frames are clips."""
    if kind == "frames":
        return "patients" if census.folders.depth() is not None else "tree", True
    if kind != "auto":
        return kind, False
    if nnunet or census.folders.depth() is None:
        return "tree", False
    if set(census.readers) != {"dicom"} and are_classes(census.folders):
        return ("imagefolder" if set(census.readers) <= _PICTURES else "tree"), False
    return "patients", census.clips > 1


def _class_names(census: _Census, kind: Kind) -> tuple[str, ...]:
    if kind != "imagefolder":
        return census.array_classes.copy().pop() if len(census.array_classes) == 1 else ()
    names = tuple(sorted(path[0] for path in census.folders.levels[0]))
    if not names or 0 in census.folders.crowded:
        found = "more than are counted" if names else "none"
        raise UserError(f"layout imagefolder: expected a folder for each class, found {found}: choose another layout")
    return names


def _layout(folder: Path, census: _Census, tree: _Tree) -> Layout:
    notes = [f"regions in dataset.json are no labels of their own: {', '.join(tree.dataset.regions)}"]
    notes = notes if tree.dataset.regions else []
    name = _name(folder, census, tree)
    folders = len(census.folders.levels[tree.depth])
    if tree.kind == "patients" and set(census.readers) != {"dicom"}:
        more = "more than " if tree.depth in census.folders.crowded else ""
        name += f", {more}{folders} folders understood as patients"
        notes.append("folders are taken as patients, their names are not kept: if they are classes, say --layout "
                     "imagefolder; if they mean nothing, --layout tree; or give a manifest")  # fmt: skip
    if tree.clips and census.clips:
        name += f", {census.clips} folders of numbered frames understood as clips"
        notes.append("folders of numbered frames are one image each: if frames are images, say --layout patients")
    elif census.clips and tree.kind != "imagefolder":
        notes.append(f"{census.clips} folders hold numbered frames: if each is one clip, say --layout frames")
    if not tree.together:
        notes.append(f"more than {GROUPED_TOGETHER} DICOM files: a series must lie within one folder at the top")
    notes += notes_of(census.ignored, census.locked)
    files = sum(census.readers.values())
    said = tree.dataset
    return Layout(
        name,
        tree.classes,
        census.ignored.total(),
        tuple(notes),
        dict(said.mask_names),
        files,
        ignored_labels=said.ignored,
    )


def _name(folder: Path, census: _Census, tree: _Tree) -> str:
    readers = set(census.readers)
    if tree.kind == "imagefolder":
        return f"pictures in {len(tree.classes)} class folders: {', '.join(tree.classes)}"
    if (folder / "imagesTr").is_dir():
        channels = f", {len(tree.dataset.channels)} channels" if len(tree.dataset.channels) > 1 else ""
        return f"MSD or nnU-Net folder: imagesTr, {census.masks} masks{channels}"
    if readers == {"array"}:
        return "array files"
    if readers == {"dicom"}:
        return "DICOM tree, grouped into series"
    return f"tree of {' and '.join(sorted(readers)) or 'no'} images" + (
        f", {census.masks} masks" if census.masks else ""
    )


def _is_clip(leaf: Leaf, folder: Path) -> bool:
    """A folder of nothing but numbered frames without masks, where there is a reader for them."""
    if "frames" not in READERS or leaf.masks or any(file.reader != "raster" for file in leaf.images):
        return False
    from ssl_med.data.readers.frames import looks_like_frames

    paths = [file.path for file in leaf.images]
    return len(paths) >= _FEWEST_FRAMES and looks_like_frames(paths) and mask_of(paths[0], folder) is None
