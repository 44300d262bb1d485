"""A name on the Hub -> a file on this machine; a folder -> a repository on the Hub.

All contact with `huggingface_hub`. Its cache, its token and its environment variables (HF_HOME, HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE) hold here as everywhere.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infusion.errors import UserError, first_line

ADAPTER_NAME = "adapter.safetensors"
PICTURES_DIR = "pictures"
_ON_THE_HUB = re.compile(
    r"(?P<repo_id>[^/@\s]+/[^/@\s]+)"
    r"(@(?P<revision>refs/(?:pr|convert)/[^/@\s]+|[^/@\s]+))?"
    r"(/(?P<file>[^@]+\.safetensors))?"
)
_PIPELINE = "model_index.json"
_NOTES = ("README.md", "adapter_config.json")
_WEIGHTS = (".safetensors", ".bin", ".pt")
_OF_MODELS = (*_WEIGHTS, ".json", ".txt", ".model", "README.md")
_OF_EVERY_REPOSITORY = {".gitattributes", "README.md"}
_SECONDS = 10.0  # to wait for an answer before the cache is looked into: what huggingface_hub itself waits
_MOST_TOLD = 8


def adapter_path(given: str | Path) -> Path:
    """Where an adapter file lies on this machine: what is there already, or what the Hub has under that name.

    Args:
        given: a path; or `user/repo`, `user/repo@revision`, `user/repo/file.safetensors` on the Hub. What is on this
            machine takes precedence. Without network it is the cached copy.

    Raises:
        UserError: the Hub has no such file, or does not give it.
    """
    path = Path(given)
    found = None if os.path.exists(path) else _ON_THE_HUB.fullmatch(path.as_posix())
    if found is None or not is_repo_id(found["repo_id"]):
        return path
    return _downloaded(found["repo_id"], found["revision"], found["file"])


def model_path(given: str | Path) -> Path:
    """Where a customization of any tool lies on this machine: what is there already, or what the Hub has.

    Args:
        given: a path; or `user/repo`, `user/repo@revision`, `user/repo/file.safetensors` on the Hub. Of a repository
            with a model_index.json the whole pipeline is got, of any other what lies in it beside its folders; with a
            file, the notes beside it.

    Raises:
        UserError: the Hub has no such file, or does not give it.
    """
    path = Path(given)
    found = None if os.path.exists(path) else _ON_THE_HUB.fullmatch(path.as_posix())
    if found is None or not is_repo_id(found["repo_id"]):
        return path
    repo_id, revision, file = found["repo_id"], found["revision"], found["file"]
    nothing = f"There is no file or folder {given} here, and none was got from the Hub"
    names, offline = _names_there(repo_id, revision, nothing)
    if file:
        _chosen(repo_id, names, file)
        folder = file.rpartition("/")[0]
        wanted = [file, *(f"{folder}/{note}".lstrip("/") for note in _NOTES)]
    else:
        depth = 1 if _PIPELINE in names else 0
        wanted = [name for name in names if name.endswith(_OF_MODELS) and name.count("/") <= depth]
        wanted = [name for name in wanted if not depth or "/" in name or not name.endswith(_WEIGHTS)]
    paths = {name: _got(repo_id, revision, name, offline, nothing) for name in wanted if name in names}
    if not paths:
        raise UserError(f"{repo_id} on the Hub holds no weights that can be read.")
    if file:
        return paths[file]
    return next(path for name, path in paths.items() if "/" not in name).parent


def is_repo_id(name: str) -> bool:
    """Whether a repository on the Hub can be called that: `user/repo`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not name.endswith(".safetensors")


def push_folder(folder: Path, repo_id: str, private: bool, message: str) -> str:
    """Make a folder the contents of a model repository, in one commit; returns its address.

    The repository is made where there is none. Images of an earlier push go; other files there stay.

    Raises:
        UserError: the name, the token or the network do not allow it, or the repository is of something else.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
    from huggingface_hub.errors import HTTPError

    check_repo_id(repo_id)
    if get_token() is None:
        raise UserError("Pushing takes a token of the Hub that may write: set HF_TOKEN, or run `hf auth login` once.")
    api = HfApi()
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    try:
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        there = api.model_info(repo_id)
        names = _file_names(there)
        _check_may_replace(repo_id, names, private and not there.private)
        stale = [name for name in names if name.startswith(f"{PICTURES_DIR}/") and name not in files]
        changes: list[Any] = [
            *(CommitOperationDelete(name) for name in stale),
            *(CommitOperationAdd(name, path) for name, path in files.items()),
        ]
        # Not upload_folder: with Xet it may make several commits.
        api.create_commit(repo_id, changes, commit_message=message)
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__  # where an upload failed on its thread
        told = cause if isinstance(error, RuntimeError) and isinstance(cause, Exception) else error
        raise _refused(told, repo_id, None, f"Nothing was pushed to {repo_id}") from error
    return f"{api.endpoint}/{repo_id}"


def check_repo_id(repo_id: str) -> None:
    if not is_repo_id(repo_id):
        raise UserError(
            f'"{repo_id}" cannot be a repository on the Hub: give user/name, in letters, digits, -, _ and ., without '
            "-- and .., at most 96 of them."
        )


def _downloaded(repo_id: str, revision: str | None, file: str | None) -> Path:
    nothing = f"There is no adapter file {repo_id} here, and none was got from the Hub"
    names, offline = _names_there(repo_id, revision, nothing)
    name = _chosen(repo_id, names, file)
    return _got(repo_id, revision, name, offline, nothing)


def _names_there(repo_id: str, revision: str | None, nothing: str) -> tuple[list[str], Exception | None]:
    """The files of a repository; without network, those got before, and why there is none."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, RevisionNotFoundError

    api = HfApi()
    try:
        # Asked first, as a download without network tries again for half a minute.
        return _file_names(api.model_info(repo_id, revision=revision, timeout=_SECONDS)), None
    except (HTTPError, OSError) as error:
        names = [] if isinstance(error, RevisionNotFoundError) else _cached_names(api, repo_id, revision)
        if not names:
            raise _refused(error, repo_id, revision, nothing) from error
        return names, error


def _got(repo_id: str, revision: str | None, name: str, offline: Exception | None, nothing: str) -> Path:
    """One file of a repository, on this machine."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        return Path(HfApi().hf_hub_download(repo_id, name, revision=revision, local_files_only=offline is not None))
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise _refused(offline or error, repo_id, revision, nothing) from error


def _file_names(info: Any) -> list[str]:
    return [sibling.rfilename for sibling in info.siblings or []]


def _cached_names(api: Any, repo_id: str, revision: str | None) -> list[str]:
    """What was got of a repository before."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(api.snapshot_download(repo_id, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return []
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _chosen(repo_id: str, names: Sequence[str], wanted: str | None) -> str:
    """The file that was asked for; else the one `infusion push` writes, else the only one there is."""
    adapters = sorted(name for name in names if name.endswith(".safetensors"))
    several = len(adapters) > _MOST_TOLD
    told = ", ".join([*adapters[:_MOST_TOLD], *([f"{len(adapters) - _MOST_TOLD} more"] if several else [])])
    if wanted is not None:
        if wanted not in adapters:
            raise UserError(f"{repo_id} has no file {wanted}; its .safetensors files: {told or 'none'}.")
        return wanted
    if ADAPTER_NAME in adapters:
        return ADAPTER_NAME
    if not adapters:
        raise UserError(f"{repo_id} on the Hub has no .safetensors file: it is not the repository of an adapter.")
    if len(adapters) > 1:
        raise UserError(f"{repo_id} has several .safetensors files; give one of them, {repo_id}/FILE: {told}.")
    return adapters[0]


def _check_may_replace(repo_id: str, names: Sequence[str], is_public: bool) -> None:
    """A card is never written over the card of something else, nor a private adapter into a public repository."""
    if is_public:
        raise UserError(
            f"{repo_id} is there already, and public: make it private in its settings, or leave --private out."
        )
    others = sorted(set(names) - _OF_EVERY_REPOSITORY)
    if others and ADAPTER_NAME not in others:
        raise UserError(
            f"{repo_id} is the repository of something else (it holds {others[0]}, and no {ADAPTER_NAME}): give "
            "another name."
        )


def _refused(error: Exception, repo_id: str, revision: str | None, what: str) -> UserError:
    """What the Hub, or the way to it, said, as a sentence."""
    from huggingface_hub import errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    match error:
        case UserError():
            return error
        case errors.OfflineModeIsEnabled():
            why = "HF_HUB_OFFLINE is set, and it is not among what was got before; unset it"
        case errors.GatedRepoError():
            why = "its owner gives access on request; ask for it on its page, and log in with `hf auth login`"
        case errors.RepositoryNotFoundError():
            why = (
                f"it has no model repository {repo_id}, or a private one that your token does not open; check the "
                "name, or log in with `hf auth login`"
            )
        case errors.RevisionNotFoundError():
            why = f"{repo_id} has no revision {revision}; give a branch, a tag or a commit"
        case errors.HfHubHTTPError() if status == 401:
            why = "it does not know your token; set HF_TOKEN to a valid one, or run `hf auth login`"
        case errors.HfHubHTTPError() if status == 403:
            why = f"your token does not allow it; it needs the right to write to {repo_id}"
        case errors.HfHubHTTPError():
            why = f"it answered {status}; try later"
        case errors.HTTPError():
            why = f"it cannot be reached ({first_line(error)}); check the network"
        case _:
            why = first_line(error).rstrip(".")
    return UserError(f"{what}: {why}.")
