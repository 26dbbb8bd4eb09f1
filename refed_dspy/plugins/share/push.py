"""Upload a folder that `share` made to the Hub: first show what would be sent, then, on request, send exactly that."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refed_dspy.config.keywords import checked
from refed_dspy.errors import InputError, briefly, one_line
from refed_dspy.files import path_of
from refed_dspy.plugins.share import hub
from refed_dspy.plugins.share.manifest import FILE, SharedFile, hash_file, read_manifest, unlisted
from refed_dspy.plugins.share.secrets import find_key_shapes, find_secrets, secret_values

MESSAGE = "Data set made with refed-dspy"
BRANCH = "main"
_REPO = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*", re.ASCII)
_BRANCH = re.compile(r"[A-Za-z0-9][\w.\-/]{0,199}", re.ASCII)
_CARD = "README.md"


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
            return "nothing was sent; to send exactly this, run the same command with go=True"
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
    sent = hub.send(plan.folder, plan.files, hub.Target(plan.repo, plan.private, plan.branch, plan.message))
    return replace(plan, commit=sent.commit, unchanged=sent.commit is None, staying=sent.staying)


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
        account=hub.account(),
        hub=hub.address(),
    )


def _current(folder: Path, relative: str) -> SharedFile:
    """The file as it is now. Raises InputError for a missing file, and for a link, which may lead anywhere."""
    path = folder / relative
    linked = any((folder / Path(*Path(relative).parts[:end])).is_symlink() for end in range(1, len(path.parts)))
    if linked:
        raise InputError(
            f"{one_line(path, 200)}: is a link or in a linked folder; make the folder again with force=True"
        )
    try:
        return hash_file(folder, relative)
    except OSError as error:
        why = one_line(error.strerror or error)
        raise InputError(f"{one_line(path, 200)}: {why}; make the folder again with force=True") from None


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
