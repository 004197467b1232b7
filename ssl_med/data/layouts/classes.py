"""Are folders classes or patients? Names of persons must never become names of classes, so doubt means patients."""

import re
from dataclasses import dataclass, field

from ssl_med.data.layouts.base import SPLITS
from ssl_med.data.layouts.masks import IMAGE_FOLDERS, MASK_FOLDERS

_MOST_FOLDERS = 1000
"""Counted one by one; trees with more folders on a level have no classes there."""

_MOST_CLASSES = 100
_LEVELS = 4

PATIENT = re.compile(
    r"sub-[A-Za-z0-9]+|(?:patient|subject|pat|subj|pid|case|person)[-_ ]?[A-Za-z]{0,3}\d\w*", re.IGNORECASE
)
"""Folders that say themselves that they are one patient."""

_STRUCTURE = {*SPLITS, *(name.lower() for name in (*IMAGE_FOLDERS, *MASK_FOLDERS))}
_STRUCTURE |= {"patients", "subjects", "cases", "data", "raw", "scans", "dicom", "dcm", "nifti", "png", "jpg", "jpeg"}
_STRUCTURE |= {"anat", "func", "dwi", "perf", "pet", "fmap", "image", "imgs", "img", "pictures", "volumes", "frames"}
_OF_PATIENTS = {"patients", "subjects", "cases", "persons"}

_DATE = re.compile(r"(?:19|20)\d\d[-_.]?\d\d[-_.]?\d\d|\d\d[-_.]\d\d[-_.](?:19|20)?\d\d")
_TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_WORDS = frozenset(  # of medicine and of grading, as data sets name their classes
    """
    abdomen abdominal abnormal absent acute adenocarcinoma adenosis adipose anterior aortic artery ascites
    background bacterial basophil bcc benign biopsy birads bone brain breast cancer cancerous cardiac carious
    cat cataract cats cell cells cervix chest chronic class clean cnv colon control controls covid ct cxr cyst
    debris defect demented dementia dermal diabetic disc disease diseased dme dog dogs drusen ductal dysplastic
    early edema effusion elbow emphysema empty eosinophil erythroblast eye false female fibrous fistula fluid
    foot fracture fractured fundus glaucoma grade haemorrhage hand head healthy heart hemorrhage hernia high hip
    infected infection infiltrate injury intermediate invasive keratosis kidney knee label left lesion liver
    lobular low lung lymph lymphocyte macula male malignant mass mature mild moderate mr mri mucosa mucus muscle
    myopia neg negative neutrophil nevus no nodes nodule non none nonviolent normal not opacity other
    parasitized pathology pelvis pituitary platelet pneumothorax polyp pos positive posterior proliferate
    prostate retina retinal right scan severe shoulder sick skin spine stage stroke stroma suspicious tb
    thickening tumor tumour type ulcer ultrasound unaffected uncertain uninfected unknown vascular very viral
    virus wrist xray yes zone
    """.split()  # noqa: SIM905
)
_ENDINGS = ("omas", "oma", "itis", "osis", "asis", "emia", "pathy", "plasia", "cyte", "cytes", "phil", "monia", "tasis")
_ENDINGS += ("megaly", "rrhage", "sclerosis", "trophy", "thorax", "sion", "ction")


@dataclass
class Folders:
    """What is counted of the folders of a tree, bounded in size.

    Attributes:
        levels: for each depth the folders (as paths) with the number of images below them and their splits.
        of_patients: some folder on the way is named ``patients`` or is one patient by its name.
        crowded: depths with more folders than are counted.
    """

    levels: list[dict[tuple[str, ...], tuple[int, frozenset[str]]]] = field(
        default_factory=lambda: [{} for _ in range(_LEVELS)]
    )
    of_patients: bool = False
    crowded: set[int] = field(default_factory=set)

    def add(self, parts: tuple[str, ...], images: int) -> None:
        """Count the images of one folder."""
        if not images:
            return
        split = frozenset(SPLITS[part.lower()] for part in parts if part.lower() in SPLITS)
        self.of_patients |= any(part.lower() in _OF_PATIENTS or PATIENT.fullmatch(part) for part in parts)
        inner = meaningful(parts)
        for depth in range(min(_LEVELS, len(inner))):
            level, path = self.levels[depth], inner[: depth + 1]
            if path not in level and len(level) >= _MOST_FOLDERS:
                self.crowded.add(depth)
                continue
            count, splits = level.get(path, (0, frozenset()))
            level[path] = (count + images, splits | split)

    def depth(self) -> int | None:
        """The first level on which the tree branches; None if it does not."""
        return next((depth for depth, level in enumerate(self.levels) if len(level) > 1), None)


def meaningful(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Folders on the way without those that name a split or a kind of file."""
    return tuple(part for part in parts if part.lower() not in _STRUCTURE)


def group_of(parts: tuple[str, ...], depth: int) -> str:
    """The folder that groups an image at the given level; empty for an image above it."""
    inner = meaningful(parts)
    return "/".join(inner[: depth + 1]) if len(inner) > depth else ""


def patient_of(parts: tuple[str, ...]) -> str:
    """The folder that says itself that it is one patient; empty if none does."""
    return next((part for part in parts if PATIENT.fullmatch(part)), "")


def are_classes(folders: Folders) -> bool:
    """Whether the folders of the first level are classes beyond doubt.

    Counts cannot tell classes from patients (a CT saved as pictures has hundreds), names can: folders are classes
    if none of them looks like a patient, there are few beside the images, and either most of their names are words of
    medicine or of grading, or the same names come back under train, val and test, where a patient must not.
    """
    depth = folders.depth()
    if depth != 0 or depth in folders.crowded or folders.of_patients:
        return False
    names = {path[0]: found for path, found in folders.levels[0].items()}
    if len(names) > _MOST_CLASSES or any(looks_like_a_patient(name) for name in names):
        return False
    images = sum(count for count, _ in names.values())
    if 3 * len(names) > 2 * images:
        return False
    repeated = sum(len(splits) > 1 for _, splits in names.values())
    return 2 * repeated >= len(names) or _grades(set(names)) or 3 * _known(names) >= 2 * len(names)


def looks_like_a_patient(name: str) -> bool:
    """Identifiers, dates, and two capitalised words that are no words of medicine."""
    if PATIENT.fullmatch(name) or _DATE.search(name) or re.search(r"\d{3}|[\^,]", name):
        return True
    words = [word for word in re.split(r"[ _.-]+", name) if word]
    capitalised = [word for word in words if word[0].isupper() and word.isalpha()]
    return len(words) in (2, 3) and len(capitalised) == len(words) and not any(_is_known(word) for word in words)


def _known(names: dict[str, tuple[int, frozenset[str]]]) -> int:
    return sum(any(_is_known(word) for word in _TOKEN.findall(name)) for name in names)


def _is_known(word: str) -> bool:
    word = word.lower()
    return word in _WORDS or (len(word) > 5 and word.endswith(_ENDINGS))


def _grades(names: set[str]) -> bool:
    """``0``, ``1``, ``2`` ...: patients are rarely counted from zero, and these names say nothing of anybody."""
    return names == {str(number) for number in range(len(names))} and len(names) <= 12
