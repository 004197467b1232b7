"""``ssl-med push`` and ``ssl-med pull``: weights to and from a Hugging Face hub, or a folder that plays one.

Nothing leaves this machine before a person has seen what would, and has said ``--yes``.
"""

import shutil
import tempfile
import warnings
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlparse

PICKLES = (".pkl", ".pickle", ".bin", ".pth", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".ts", ".h5", ".pt2")
"""Files that may run code when they are loaded, or that no export of ours holds."""


def push(folder: str | Path, to: str, yes: bool = False, public: bool = False) -> list[str]:
    """Send an export, after the check of its card; without ``yes`` only say what would be sent.

    Args:
        folder: an export of any format.
        to: ``owner/name`` on the hub, ``file:///...``, or a path.
        yes: do send.
        public: a new repository on the hub is private otherwise.

    Returns:
        Names of the files.

    Raises:
        UserError: the card is not in order, or the target is in use.
    """
    from ssl_med.card_check import check_folder
    from ssl_med.errors import UserError
    from ssl_med.exports import find_export
    from ssl_med.model_card import files_in
    from ssl_med.verbs.hugging_face import upload

    folder = find_export(folder)
    errors = [str(finding) for finding in check_folder(folder) if finding.level == "error"]
    if errors:
        raise UserError(f"{folder} is not fit to be sent: {'; '.join(errors)}")
    names, place = [*files_in(folder), "card.json"], _local(to)
    _refuse_pickles(names)
    for name in names:
        print(f"  {name}  {(folder / name).stat().st_size:,} bytes")
    if not yes:
        kind = "the repository" if place is None else "the folder"
        print(f"nothing was sent: {len(names)} files would go to {kind} {to}; say --yes to send them")
    elif place is not None:
        _copy(folder, names, place)
        print(f"sent {len(names)} files to {to}")
    else:
        upload(folder, names, to, public)
        print(f"sent {len(names)} files to {to}")
    return names


def pull(source: str, out: str | Path, revision: str | None = None) -> Path:
    """Fetch an export, refuse what may run code, and verify every hash before the folder appears.

    Args:
        source: ``owner/name`` on the hub, ``file:///...``, or a path.
        out: folder; must not be there, or be empty.
        revision: branch, tag or commit of a repository on the hub; its main branch if None.

    Returns:
        The folder.

    Raises:
        UserError: pickles, a link, a changed file, no card, or a folder in use.
    """
    from ssl_med.card_check import check_hashes
    from ssl_med.errors import UserError

    out, place = Path(out), _local(source)
    if place is not None and revision:
        raise UserError(f"--revision {revision}: {source} is a folder, which has one state only")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; give another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".pull-") as between:
        fetched = Path(between) / "export"
        commit = _fetch(source, place, fetched, revision)
        _refuse_tensors_with_code(fetched)
        wrong = check_hashes(fetched)
        if wrong:
            raise UserError(f"{source} was not taken: {'; '.join(map(str, wrong))}")
        fetched.rename(out)
    print(f"pulled{commit}, all hashes verified: {out}")
    return out


def _fetch(source: str, place: Path | None, into: Path, revision: str | None) -> str:
    """All files, of which no name is a pickle's; says which commit they are of, where there are commits."""
    from ssl_med.errors import UserError
    from ssl_med.model_card import files_in
    from ssl_med.verbs.hugging_face import download

    if place is None:
        return f" commit {download(source, into, revision, _refuse_pickles)}"
    if not (place / "card.json").is_file():
        raise UserError(f"{source} holds no export (card.json)")
    names = [*files_in(place), "card.json"]
    _refuse_pickles(names)
    _copy(place, names, into)
    return ""


def _local(place: str) -> Path | None:
    """The folder that plays the hub; None for a repository of a hub, ``owner/name``."""
    address = urlparse(place)
    if address.scheme == "file":
        return Path(unquote(address.path))
    is_path = place.startswith(("/", "./", "../", "~")) or Path(place).is_dir() or place.count("/") != 1
    return Path(place).expanduser() if is_path else None


def _refuse_pickles(names: list[str]) -> None:
    from ssl_med.errors import UserError

    bad = [name for name in names if PurePosixPath(name).suffix.lower() in PICKLES]
    odd = [name for name in names if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts]
    if bad or odd:
        raise UserError(f"refused: {', '.join(bad + odd)} may run code when loaded, or lies outside of the folder")


def _refuse_tensors_with_code(folder: Path) -> None:
    """MONAI wants ``model.pt``: it must be plain tensors, which torch's restricted loader tells without running it."""
    import pickle

    import torch

    from ssl_med.errors import UserError

    for path in folder.rglob("*.pt"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the restricted loader about files that it then refuses
                found = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            raise UserError(f"refused: {path.name} holds more than plain tensors") from error
        if not (isinstance(found, dict) and all(isinstance(value, torch.Tensor) for value in found.values())):
            raise UserError(f"refused: {path.name} holds more than plain tensors")


def _copy(folder: Path, names: list[str], place: Path) -> None:
    """Into a folder that is not there yet; it appears whole."""
    from ssl_med.errors import UserError

    if place.exists() and any(place.iterdir()):
        raise UserError(f"{place} is not empty; give another folder")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".push-") as between:
        for name in names:
            target = Path(between) / "export" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target)
        (Path(between) / "export").rename(place)
