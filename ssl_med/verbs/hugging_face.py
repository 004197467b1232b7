"""The Hugging Face hub behind ``push`` and ``pull``: a handful of calls, all of which a person has asked for.

The client finds its token by itself (``hf auth login``, ``HF_TOKEN``); it is never read, passed or printed here.
"""

import glob
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ssl_med.errors import UserError


def upload(folder: Path, names: list[str], to: str, public: bool) -> None:
    """One commit after which a repository holds these files and no other; what it held before stays in its history.

    Args:
        folder: with the files.
        names: relative to it.
        to: ``owner/name``.
        public: may be seen by everybody.

    Raises:
        UserError: offline, refused by the hub, or a repository that everybody sees already.
    """
    from huggingface_hub import HfApi

    with _told("send to", to):
        hub = HfApi()
        hub.create_repo(to, private=not public, exist_ok=True)
        if not public and not hub.repo_info(to).private:
            raise UserError(f"{to} is there already and everybody can see it: say --public, or take another name")
        exactly = [glob.escape(name) for name in names]  # the client reads names as patterns
        hub.upload_folder(
            repo_id=to,
            folder_path=folder,
            allow_patterns=exactly,
            delete_patterns="*",
            commit_message="Weights and card",
        )


def download(source: str, folder: Path, revision: str | None, refuse: Callable[[list[str]], None]) -> str:
    """All files of a repository at one commit; the client's own notes about the download are removed.

    Args:
        source: ``owner/name``.
        folder: where to.
        revision: branch, tag or commit; the main branch if None.
        refuse: looks at the names before a byte is fetched, and raises.

    Returns:
        The commit.

    Raises:
        UserError: offline, or refused by the hub.
    """
    from huggingface_hub import HfApi, snapshot_download

    with _told("fetch from", source):
        commit = str(HfApi().repo_info(source, revision=revision).sha)
        names = [name for name in HfApi().list_repo_files(source, revision=commit) if name != ".gitattributes"]
        refuse(names)
        exactly = [glob.escape(name) for name in names]
        snapshot_download(source, revision=commit, local_dir=folder, allow_patterns=exactly)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return commit


@contextmanager
def _told(what: str, repository: str) -> Iterator[None]:
    """The client's errors as one sentence."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or ".." in repository:
        raise UserError(f"{repository!r} is no repository of a hub: OWNER/NAME; a path begins with / or ./")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"HF_HUB_OFFLINE is set, so nothing was asked: unset it to {what} {repository}")
    try:
        yield
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot {what} {repository}: {reason[:200]}") from error
