"""Send a package to the Hub in one commit, and compare the result."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo
from huggingface_hub.utils.sha import git_hash

from toolkit.data.links import open_inside, shown
from toolkit.errors import InputError
from toolkit.hub.connection import AGAIN, HubError, model_info, persist
from toolkit.hub.package import PackedFile, check_unchanged

IN_MEMORY = 1 << 26  # bytes; larger files are sent from the disk


def publish(
    api: HfApi,
    repo_id: str,
    folder: Path,
    files: list[PackedFile],
    private: bool = True,
    say: Callable[[str], None] = print,
) -> str:
    """Make the repository if it does not exist, send the files in one commit, and compare.

    Nothing is removed from the repository, and its visibility is not changed.

    Returns:
        The commit's address.

    Raises:
        InputError: a file changed after it was checked; nothing was sent.
        HubError: the Hub failed. The commit is all or nothing, and a second run completes it.
    """
    check_unchanged(folder, files)
    info = _existing(api, repo_id)
    if info is None:
        persist(lambda: api.create_repo(repo_id, private=private, exist_ok=True), repo_id, say)
        info = model_info(api, repo_id)
    if bool(info.private) != private:
        have, want = ("private", "public") if info.private else ("public", "private")
        raise HubError(
            f"repo_id: {repo_id} is {have} on the Hub, but must be {want} (change its settings on "
            f"the Hub, or {'leave out --public' if info.private else 'pass --public'}, or name "
            "another)"
        )
    others = sorted({s.rfilename for s in info.siblings or []} - {f.name for f in files})
    if strangers := [name for name in others if name != ".gitattributes"]:
        say(f"{repo_id} also holds, and keeps: {', '.join(map(shown, strangers))}")

    def send() -> str:
        operations = [_operation(folder, file) for file in files]
        commit = api.create_commit(repo_id, operations, commit_message="Publish")
        return str(commit.oid)

    try:
        oid = persist(send, repo_id, say)
    except HubError:
        # The commit may have arrived although its answer was lost.
        if differences(_existing(api, repo_id), files, folder):
            raise
        oid = None
    wrong = differences(model_info(api, repo_id, oid), files, folder)
    if wrong:
        raise HubError(f"{repo_id}: the Hub now has other content in {', '.join(wrong)} ({AGAIN})")
    return f"{api.endpoint}/{repo_id}" + (f"/commit/{oid}" if oid else "")


def _operation(folder: Path, file: PackedFile) -> CommitOperationAdd:
    """Make the operation that sends a file, if it has not changed since it was checked.

    For a large file huggingface_hub sends the hash first, and the Hub accepts no other bytes.
    """
    stream = open_inside(folder, file.name)
    if stream is None:
        raise InputError(f"{folder}: {file.name} is gone (run the same command again)")
    with stream:
        small = stream.read() if file.size <= IN_MEMORY else None
    operation = CommitOperationAdd(file.name, folder / file.name if small is None else small)
    if operation.upload_info.sha256.hex() != file.sha256:
        raise InputError(
            f"{folder}: {file.name} was changed after it was checked (run the same command again)"
        )
    return operation


def differences(info: ModelInfo | None, files: list[PackedFile], folder: Path) -> list[str]:
    """Return the names of files that the Hub does not have byte for byte."""
    there = {s.rfilename: s for s in (info.siblings if info is not None else None) or []}
    wrong = []
    for file in files:
        known = there.get(file.name)
        if known is None:
            wrong.append(file.name)
        elif known.lfs is not None:
            if known.lfs.sha256 != file.sha256:
                wrong.append(file.name)
        else:
            content = (folder / file.name).read_bytes()
            looked_at = hashlib.sha256(content).hexdigest() == file.sha256
            if not looked_at or known.blob_id != git_hash(content):
                wrong.append(file.name)
    return wrong


def _existing(api: HfApi, repo_id: str) -> ModelInfo | None:
    try:
        return model_info(api, repo_id)
    except HubError as error:
        if error.missing:
            return None
        raise
