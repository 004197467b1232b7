"""``ssl-med card check``: may this folder be given away?"""

from pathlib import Path
from typing import Any


def card(action: str, folder: str | Path) -> list[Any]:
    """Verify hashes, required fields, absence of paths and identifiers, and that the weights load.

    Args:
        action: ``check``.
        folder: an export of any format.

    Returns:
        The findings; each is printed in a line.
    """
    from ssl_med.card_check import check_folder
    from ssl_med.exports import find_export

    found = check_folder(find_export(folder))
    for finding in found:
        print(finding)
    errors = sum(finding.level == "error" for finding in found)
    print(f"{action}: {errors} errors, {len(found) - errors} notes")
    return found
