"""Upload a folder that `share` made to the Hub: first show what would be sent, then, on request, send exactly that."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refed_dspy.concurrency import OutOfTime, within
from refed_dspy.config.keywords import checked
from refed_dspy.data.read import HUB_PATIENCE, HUB_SLOWEST
from refed_dspy.errors import FORCE, InputError, RefedError, briefly, one_line, setting
from refed_dspy.files import path_of
from refed_dspy.plugins.share.manifest import FILE, SharedFile, hash_file, read_manifest, unlisted
from refed_dspy.plugins.share.secrets import find_key_shapes, find_secrets, secret_values

MESSAGE = "Data set made with refed-dspy"
BRANCH = "main"
_REPO = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*", re.ASCII)
_BRANCH = re.compile(r"[A-Za-z0-9][\w.\-/]{0,199}", re.ASCII)
_CARD = "README.md"
_KIND = "dataset"
_IN_MEMORY = 1_000_000
"""Bytes. A file up to this size is read once, and exactly those bytes are sent."""
_HUB_FILES = {".gitattributes"}
"""Files that the Hub itself puts into a repository."""
_NOTHING_IGNORED = "# nothing is left out\n"
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_AGAIN = "run the same command to continue: files already on the Hub are not sent again"
_STATUS: Mapping[int, tuple[type[RefedError], str]] = {
    401: (InputError, "refused the token; set HF_TOKEN to a valid one or run hf auth login"),
    402: (InputError, "requires payment for this; check the account's plan"),
    403: (InputError, "does not let this token write there; use a token with role write or another OWNER"),
    404: (InputError, "has no such repository or owner, or the token cannot see it; check OWNER/NAME and the token"),
    409: (RefedError, f"reports that the repository changed meanwhile; {_AGAIN}"),
    412: (RefedError, f"reports that the repository changed meanwhile; {_AGAIN}"),
    429: (RefedError, f"asks for fewer requests; wait a few minutes; {_AGAIN}"),
}


@dataclass(frozen=True)
class Push:
    """What would be sent to the Hub, or was sent."""

    folder: Path
    repo: str
    private: bool
    branch: str
    message: str
    files: Sequence[SharedFile]
    left_out: Sequence[str]
    """Files in the folder that `refed share` did not write; they are not sent."""
    warnings: Sequence[str]
    leaks: Sequence[str]
    """Files that hold the value of a secret environment variable, or the token of a login: `go` is refused then."""
    account: str
    """Where the token comes from, or that there is none; never the token itself."""
    hub: str
    """The Hub's URL."""
    commit: str | None = None
    """The commit's URL; None while nothing was sent."""
    unchanged: bool = False
    """Whether the Hub has all of it already, so that nothing was sent."""
    staying: Sequence[str] = ()
    """Files in the repository that are not in the folder; they stay."""

    def lines(self) -> list[str]:
        """A summary for people: each file with its size and SHA-256, then what to know."""
        visibility = "private" if self.private else "PUBLIC"
        size = sum(file.bytes for file in self.files)
        verb = "is there" if self.unchanged else "would go" if self.commit is None else "went"
        width = max(len(file.path) for file in self.files)
        lines = [
            f"{len(self.files)} files, {size:,} bytes: what {verb} to {self.repo}, a {visibility} data set, "
            f"branch {self.branch}, at {self.hub}",
            *(f"  {file.path.ljust(width)}  {file.bytes:>13,} bytes  {file.sha256}" for file in self.files),
            f"token: {self.account}",
        ]
        lines += [f"not sent, since refed share did not write it: {one_line(path, 200)}" for path in self.left_out]
        lines += [f"only in the repository, kept: {one_line(path, 200)}" for path in self.staying]
        lines += [f"warning: {text}" for text in [*self.leaks, *self.warnings]]
        return [*lines, self._end()]

    def _end(self) -> str:
        if self.unchanged:
            return "unchanged: the Hub already has all of it; no commit was made"
        if self.commit is None:
            return "nothing was sent; to send exactly this, run the same command with " + setting("go", True)
        return f"sent in one commit: {self.commit}"


@briefly
@checked
def push(
    folder: str | Path,
    repo: str,
    *,
    go: bool = False,
    public: bool = False,
    branch: str = BRANCH,
    message: str = MESSAGE,
) -> Push:
    """Show what would be sent to the Hub; with `go`, send exactly that, in one commit.

    Without `go` the network is not used. The token is huggingface_hub's: HF_TOKEN, or its login. Only what
    `refed share` wrote is sent, as it is now. If the Hub has all of it already, no commit is made.

    Args:
        repo: OWNER/NAME. Created if it does not exist, private unless `public`; an existing repository must have the
            requested visibility.
        branch: created if it does not exist.

    Raises:
        InputError: not a folder of `refed share`, an invalid name, no token or no permission, another visibility, or a
            file that holds the value of a secret variable or a login's token.
        RefedError: the Hub cannot be reached, or fails.
    """
    plan = _plan(path_of(folder, "folder"), repo, public=public, branch=branch, message=message)
    if not go:
        return plan
    if plan.leaks:
        raise InputError(f"{plan.leaks[0]}; remove it and make the folder again; nothing was sent")
    return send(plan)


def _plan(folder: Path, repo: str, *, public: bool, branch: str, message: str) -> Push:
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo or len(repo) > 96:
        raise InputError(f"{one_line(repo, 100)}: not a repository name; give OWNER/NAME")
    if not _BRANCH.fullmatch(branch):
        raise InputError(f"branch {one_line(branch, 100)}: not a valid branch name; choose another")
    if not message.strip():
        raise InputError("message: is empty; describe in a few words what is pushed")
    manifest = read_manifest(folder)
    listed = manifest.files
    license_ = _license_of(folder / _CARD)
    files = [_current(folder, path) for path in [*(file.path for file in listed), FILE]]
    return Push(
        folder=folder,
        repo=repo,
        private=not public,
        branch=branch,
        message=message.strip(),
        files=files,
        left_out=unlisted(folder, listed),
        warnings=_warnings(folder, listed, files, license_),
        leaks=_leaks(folder, files, manifest.key_variables),
        account=account(),
        hub=address(),
    )


def _current(folder: Path, relative: str) -> SharedFile:
    """The file as it is now. Raises InputError for a missing file, and for a link, which may lead anywhere."""
    path = folder / relative
    linked = any((folder / Path(*Path(relative).parts[:end])).is_symlink() for end in range(1, len(path.parts)))
    if linked:
        raise InputError(f"{one_line(path, 200)}: is a link or in a linked folder; make the folder again with " + FORCE)
    try:
        return hash_file(folder, relative)
    except OSError as error:
        why = one_line(error.strerror or error)
        raise InputError(f"{one_line(path, 200)}: {why}; make the folder again with " + FORCE) from None


def _warnings(
    folder: Path, listed: Sequence[SharedFile], files: Sequence[SharedFile], license_: str | None
) -> list[str]:
    before = {file.path: file.sha256 for file in listed}
    changed = [file.path for file in files if before.get(file.path, file.sha256) != file.sha256]
    warnings = [f"{path}: changed since refed share" for path in changed]
    if (license_ or "unknown") == "unknown":
        warnings.append(f"{_CARD} names no license: without one, nobody may use the data set")
    for file in files:
        warnings += [f"{file.path}: contains what looks like {what}" for what in find_key_shapes(folder / file.path)]
    return warnings


def _leaks(folder: Path, files: Sequence[SharedFile], key_variables: Collection[str]) -> list[str]:
    secrets = secret_values(key_variables)
    return [f"{file.path}: contains {what}" for file in files for what in find_secrets(folder / file.path, secrets)]


def _license_of(card: Path) -> Any:
    """The license that the card names. Raises InputError for a missing card, and for front matter that is not YAML."""
    from huggingface_hub import DatasetCard

    try:
        return DatasetCard(card.read_text(encoding="utf-8")).data.get("license")
    except OSError as error:
        raise InputError(f"{one_line(card, 200)}: {one_line(error.strerror or error)}; make the folder again") from None
    except Exception as error:  # noqa: BLE001 — errors of YAML and of the library
        raise InputError(f"{one_line(card, 200)}: its front matter is not YAML ({one_line(error, 120)})") from None


def address() -> str:
    """The Hub's URL, as huggingface_hub is set up (HF_ENDPOINT)."""
    from huggingface_hub import constants

    return one_line(constants.ENDPOINT, 200)


def account() -> str:
    """Where huggingface_hub would take the token from; never the token itself. Uses no network."""
    from huggingface_hub import constants

    if os.environ.get("HF_OIDC_RESOURCE"):
        return "of this job (HF_OIDC_RESOURCE)"
    named = next((name for name in _VARIABLES if os.environ.get(name, "").strip()), None)
    if named is not None:
        return f"in {named}"
    stored = Path(constants.HF_TOKEN_PATH)
    return "of hf auth login" if stored.is_file() else "none yet: set HF_TOKEN, or run hf auth login"


def send(plan: Push) -> Push:
    """Put exactly the files of `plan` into the repository, in one commit; no commit where it has them all.

    Raises:
        InputError: no token, no permission, another visibility than asked for, or a file that changed meanwhile.
        RefedError: the Hub cannot be reached, or fails.
    """
    seconds = HUB_PATIENCE + sum(file.bytes for file in plan.files) / HUB_SLOWEST
    with _hub_errors(plan.repo):
        return within(seconds, _sent, plan)


def _sent(plan: Push) -> Push:
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise InputError("the Hub: no token; set HF_TOKEN to one that may write or run hf auth login")
    api = HfApi(library_name="refed-dspy")
    head = _open_branch(api, plan)
    ours = {file.path for file in plan.files}
    staying = sorted({sibling.rfilename for sibling in head.siblings or ()} - ours - _HUB_FILES)
    if not _missing(api, plan, str(head.sha)):
        return replace(plan, unchanged=True, staying=staying)
    commit = _commit(api, plan, str(head.sha))
    if wrong := _missing(api, plan, str(commit.oid)):
        raise RefedError(f"{plan.repo}: the Hub took the commit, but its {wrong[0]} differs from this one; {_AGAIN}")
    return replace(plan, commit=one_line(commit.commit_url, 300), staying=staying)


def _open_branch(api: Any, plan: Push) -> Any:
    """The head of the branch. Makes the repository and the branch where they do not exist. Raises InputError: the
    repository has another visibility than was asked for."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(plan.repo, repo_type=_KIND)
    except RepositoryNotFoundError:
        api.create_repo(plan.repo, repo_type=_KIND, private=plan.private, exist_ok=True)
        info = api.repo_info(plan.repo, repo_type=_KIND)
    if bool(info.private) != plan.private:
        public = setting("public", True)
        raise InputError(
            f"{plan.repo}: already exists and is public; confirm with " + public + "; nothing was sent"
            if plan.private
            else f"{plan.repo}: already exists and is private; leave out " + public + " or change that on the Hub"
        )
    if plan.branch == "main":
        return info
    api.create_branch(plan.repo, repo_type=_KIND, branch=plan.branch, exist_ok=True)
    return api.repo_info(plan.repo, repo_type=_KIND, revision=plan.branch)


def _missing(api: Any, plan: Push, revision: str) -> list[str]:
    """Paths of the files that the repository lacks at `revision`, or has with other content."""
    remote: dict[str, Any] = {}
    for start in range(0, len(plan.files), 500):
        paths = [file.path for file in plan.files[start : start + 500]]
        entries = api.get_paths_info(plan.repo, paths, repo_type=_KIND, revision=revision)
        remote |= {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}
    return [file.path for file in plan.files if not _same(remote.get(file.path), file)]


def _same(remote: Any, local: SharedFile) -> bool:
    if remote is None or remote.size != local.bytes:
        return False
    if remote.lfs is not None:
        return bool(remote.lfs.sha256 == local.sha256)
    return bool(remote.blob_id == local.blob)


def _commit(api: Any, plan: Push, head: str) -> Any:
    """One commit on top of `head`. Before it is made, what was uploaded is compared with the plan's files."""
    from huggingface_hub import CommitOperationAdd

    branch = {"repo_type": _KIND, "revision": plan.branch}
    adds = [CommitOperationAdd(file.path, _content(plan.folder, file)) for file in plan.files]
    # With a .gitignore from us the Hub does not apply the repository's own, which might leave out some of our files.
    api.preupload_lfs_files(plan.repo, adds, free_memory=False, gitignore_content=_NOTHING_IGNORED, **branch)
    for add, file in zip(adds, plan.files, strict=True):
        if add.upload_info.sha256.hex() != file.sha256:
            raise InputError(f"{file.path}: changed while it was being sent; nothing was committed; run it again")
    return api.create_commit(plan.repo, adds, commit_message=plan.message, parent_commit=head, **branch)


def _content(folder: Path, file: SharedFile) -> bytes | str:
    """The file's bytes, or the path of a large one."""
    path = folder / file.path
    if file.bytes > _IN_MEMORY:
        return str(path)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise InputError(f"{file.path}: changed while it was being read; nothing was sent; run it again")
    return content


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Errors of the library as ours, one line each. They quote the Hub's message, which holds no key."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        yield
    except RefedError:
        raise
    except OutOfTime as error:
        raise RefedError(f"the Hub gives {error}; what was sent may still arrive; {_AGAIN}") from None
    except HfHubHTTPError as error:
        raise _refusal(repo, error) from None
    except OfflineModeIsEnabled:
        raise RefedError("the Hub: HF_HUB_OFFLINE is set; unset it, then run it again") from None
    except HTTPError as error:  # of httpx, or of httpx2 from version 2 of the library on: its other errors are above
        raise RefedError(f"the Hub cannot be reached ({one_line(error, 120)}); check the network; {_AGAIN}") from None
    except ValueError as error:
        raise InputError(f"{repo}: {one_line(error, 300)}; nothing was committed") from None
    except RuntimeError as error:  # raised by the compiled part of the upload
        raise RefedError(f"{repo}: the upload failed ({one_line(error, 200)}); {_AGAIN}") from None
    except OSError as error:
        raise RefedError(f"{repo}: {one_line(error, 200)}; {_AGAIN}") from None


def _refusal(repo: str, error: Any) -> RefedError:
    status = int(error.response.status_code)
    message = one_line(error.server_message or "", 160)
    if status in _STATUS:
        kind, what = _STATUS[status]
        return kind(f"{repo}: the Hub {what}{f' (it says: {message})' if message else ''}")
    if status >= 500:
        return RefedError(f"{repo}: the Hub fails ({status}); wait a few minutes; {_AGAIN}")
    return InputError(f"{repo}: the Hub refuses this ({status}{f': {message}' if message else ''})")
