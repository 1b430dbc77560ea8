"""Bridges on the Hugging Face Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unspoken.channels.bridges.folder import FILES
from unspoken.channels.bridges.manifest import EMBEDDINGS
from unspoken.channels.errors import BridgeError
from unspoken.channels.storage.side import running_version


def as_folder(place: str) -> Path | None:
    """The folder that `place` names, or None where it can only be a Hub id (``owner/name``)."""
    path = Path(place).expanduser()
    looks = place in (".", "..") or "\\" in place or place.startswith(("./", "../", "/", "~"))
    return path if looks or path.exists() else None


def download(repo: str, revision: str | None) -> Path:
    """A bridge's files in the Hub's own cache, not yet checked.

    ``HF_HOME`` and ``HF_HUB_OFFLINE`` apply.

    Raises:
        BridgeError: Not found, gated or out of reach.
    """
    from huggingface_hub import snapshot_download

    where = f" at revision {revision}" if revision else ""
    with _explained(f"the bridge {repo}{where} cannot be pulled"):
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=[*FILES, EMBEDDINGS],
                library_name="unspoken",
                library_version=running_version(),
            )
        )


def upload(folder: Path, repo: str, *, private: bool | None, message: str) -> str:
    """Put a bridge's files into a model repository, made if need be. Gives its address.

    Args:
        folder: The bridge.
        repo: ``owner/name``.
        private: Whether a new repository is; None takes the owner's default.
        message: Of the commit.

    Raises:
        BridgeError: No permission, or the Hub is out of reach.
    """
    from huggingface_hub import HfApi

    with _explained(f"the bridge cannot be pushed to {repo}"):
        api = HfApi(library_name="unspoken", library_version=running_version())
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=folder,
            commit_message=message,
            allow_patterns=[*FILES, EMBEDDINGS],
        )
        return str(address)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn the Hub's errors into one that a person can act on."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.HFValidationError as error:
        raise BridgeError(
            f"{what}: {_first_line(error)}",
            expected="a Hub id (owner/name), or a folder (./name)",
            fix="check the id; a new folder starts with ./",
        ) from error
    except (errors.HfHubHTTPError, errors.LocalTokenNotFoundError) as error:
        raise BridgeError(
            f"{what}: {_first_line(error)}",
            expected=f"a repository at {constants.ENDPOINT} that your token may use",
            fix="check the id and the revision, or run `hf auth login`",
        ) from error
    except Exception as error:  # the network's own errors have no common root
        raise BridgeError(
            f"{what}: {_first_line(error)}",
            expected=f"{constants.ENDPOINT} within reach, or the files in {constants.HF_HUB_CACHE}",
            fix="check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or use a folder",
        ) from error


def _first_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:300]
