"""What of a folder is not looked at, in words: files by their kind, folders that could not be opened."""

from collections import Counter
from pathlib import Path

_KINDS = frozenset(
    """
    7z acq b2nd bak bib bin bmp bval bvec bz2 cfg conf csv czi dat db dicomdir doc docx dss dtseries edf fcsv fif
    gif gii gz h5 hdf hdf5 heic heif htm html img info ini ipynb iso jp2 jpx js json jxl key label lif log lst lut
    m mat md mgh mgz minc mkv mlproj mnc mpeg mpg mrb mrml mrxs mscz nd2 npy npz obj odt ods ogv ome onnx par
    parquet pbm pdf pgm pkl pickle pnm ppm ppt pptx pt pth py r rar raw rec rtf sav scn sh sha256 sql sqlite stl
    svg tar tck tex tfm tgz toml trk tsv txt vsi vtk vtp vtu wav webm webp wmv xls xlsx xml xsl xz yaml yml zip
    zarr zst zraw
    """.split()  # noqa: SIM905
)
"""Ends of names that are kinds of files; any other may be part of a name of a person."""

_MOST_KINDS = 8


def kind_of(path: Path) -> str:
    """The end of a file's name, if that is a kind of file."""
    if not path.suffix:
        return "no suffix"
    end = path.suffix.lower()
    return end if end[1:] in _KINDS else "other"


def notes_of(ignored: Counter[str], locked: int) -> tuple[str, ...]:
    """What a person should know of what was passed over.

    Args:
        ignored: files that no reader opens, by their kind.
        locked: folders that could not be opened.
    """
    notes: tuple[str, ...] = ()
    if ignored:
        kinds = ignored.most_common(_MOST_KINDS)
        words = ", ".join(f"{kind} {count}" for kind, count in kinds)
        more = ", ..." if len(ignored) > len(kinds) else ""
        notes += (f"ignored {ignored.total()} other files: {words}{more}",)
    if locked:
        notes += (f"{locked} folders could not be opened: what is in them is missing here",)
    return notes
