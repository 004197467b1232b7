"""The ``data`` section of a config: one store, or several of which each has settings of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_med.data.alternating import AlternatingData
from ssl_med.data.mixed import MixedData, fit_together
from ssl_med.data.module import StoreData
from ssl_med.data.several import SeveralStores
from ssl_med.errors import UserError

Section = dict[str, Any]


def folders_of(data: str | Path | Sequence[str | Path]) -> list[str]:
    """Folders of the stores that a person named: one, several with commas between them, or a list."""
    if not isinstance(data, str | Path):
        return [str(folder) for folder in data]
    text = str(data)
    return [text] if "," not in text or Path(text).exists() else [part for part in text.split(",") if part]


def sections_of(section: Mapping[str, Any], folders: Sequence[str]) -> list[Section]:
    """The settings of every store.

    Args:
        section: settings of all stores; ``stores``, a list of settings of each that come on top; with several stores
            ``weights`` may be a list, how often each is shown, which belongs to no store.
        folders: of the stores, in the order of ``stores``.

    Raises:
        UserError: settings for another number of stores.
    """
    own = section.get("stores") or [{} for _ in folders]
    if len(own) != len(folders):
        raise UserError(
            f"data.stores has settings for {len(own)} stores, --data names {len(folders)}: name one folder for each, "
            "with commas between them"
        )
    shared = {name: value for name, value in section.items() if name != "stores"}
    if len(folders) > 1 and isinstance(shared.get("weights"), list):
        del shared["weights"]
    return [{**shared, **settings, "folder": folder} for settings, folder in zip(own, folders, strict=True)]


def joined(sections: Sequence[Section], section: Mapping[str, Any]) -> Section:
    """The settings of all stores as one section, see :func:`data_of`; ``section`` may give weights of the stores."""
    if len(sections) == 1:
        return sections[0]
    weights = section.get("weights")
    return {"stores": list(sections), "weights": weights if isinstance(weights, list) else None}


def data_of(section: Mapping[str, Any]) -> StoreData | SeveralStores:
    """The data module of a resolved section: stores are mixed in every batch where crops and batches are of one size.

    Args:
        section: arguments of :class:`StoreData`, or ``stores``, a list of such, with ``weights``.
    """
    if "stores" not in section:
        return StoreData(**section)
    stores = [StoreData(**settings) for settings in section["stores"]]
    kind = MixedData if fit_together(stores) else AlternatingData
    return kind(stores, section["weights"])
