"""A folder that `share` made, to the Hub: what would go is shown, and exactly that goes when it is told to."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from refed_dspy.errors import InputError, one_line
from refed_dspy.sharing import hub
from refed_dspy.sharing.manifest import FILE, SharedFile, looked_at, read_manifest, unlisted
from refed_dspy.sharing.secrets import holds_secrets, known_secrets, looks_like_keys

MESSAGE = "Data set made with refed-dspy"
BRANCH = "main"
_REPO = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*", re.ASCII)
_BRANCH = re.compile(r"[A-Za-z0-9][\w.\-/]{0,199}", re.ASCII)
_CARD = "README.md"


@dataclass(frozen=True)
class Push:
    """What would go to the Hub, or went."""

    folder: Path
    repo: str
    private: bool
    branch: str
    message: str
    files: Sequence[SharedFile]
    left_out: Sequence[str]
    """Files in the folder that `refed share` did not write: they do not go."""
    warnings: Sequence[str]
    leaks: Sequence[str]
    """Where a file holds the value of an environment variable that is a secret, or the token of a login: with `go`,
    refused."""
    account: str
    """Where the token is from, or that there is none; never the token."""
    hub: str
    """The Hub's address."""
    commit: str | None = None
    """The commit's address; None while nothing was sent."""
    unchanged: bool = False
    """Whether the Hub has all of it already: then nothing was sent."""
    staying: Sequence[str] = ()
    """Files in the repository that are none of the folder's; they stay."""

    def lines(self) -> list[str]:
        """All of it for people; what goes with size and SHA-256."""
        seen = "private" if self.private else "PUBLIC"
        size = sum(one.bytes for one in self.files)
        went = "would go" if self.commit is None and not self.unchanged else "is there" if self.unchanged else "went"
        width = max(len(one.path) for one in self.files)
        told = [
            f"{len(self.files)} files, {size:,} bytes: what {went} to {self.repo}, a {seen} data set, "
            f"branch {self.branch}, at {self.hub}",
            *(f"  {one.path.ljust(width)}  {one.bytes:>13,} bytes  {one.sha256}" for one in self.files),
            f"token: {self.account}",
        ]
        told += [f"not sent, since refed share did not write it: {one_line(path, 200)}" for path in self.left_out]
        told += [f"in the repository and not in the folder, stays: {one_line(path, 200)}" for path in self.staying]
        told += [f"warning: {text}" for text in [*self.leaks, *self.warnings]]
        return [*told, self._end()]

    def _end(self) -> str:
        if self.unchanged:
            return "unchanged: the Hub has all of it already; no commit was made"
        if self.commit is None:
            return "nothing was sent; to send exactly this, give the same command with --go"
        return f"sent in one commit: {self.commit}"


def push(
    folder: str | Path,
    repo: str,
    *,
    go: bool = False,
    public: bool = False,
    branch: str = BRANCH,
    message: str = MESSAGE,
) -> Push:
    """Show what would go to the Hub; with `go`, send exactly that, in one commit.

    Without `go` nothing is asked of the network. The token is huggingface_hub's: HF_TOKEN, or its login. Only what
    `refed share` wrote goes, as it is now. A folder that the Hub has already makes no commit.

    Args:
        repo: OWNER/NAME. Made where it is not there, private unless `public`; the visibility of one that is there
            must be the one asked for.
        branch: made where it is not there.

    Raises:
        InputError: not a folder of `refed share`, a name that is none, no token or no right, another visibility, or
            the value of a secret variable, or a login's token, in a file.
        RefedError: the Hub cannot be reached, or fails.
    """
    plan = _plan(Path(folder), repo, public=public, branch=branch, message=message)
    if not go:
        return plan
    if plan.leaks:
        raise InputError(f"{plan.leaks[0]}; take it out, and make the folder again; nothing was sent")
    sent = hub.send(plan.folder, plan.files, hub.Target(plan.repo, plan.private, plan.branch, plan.message))
    return replace(plan, commit=sent.commit, unchanged=sent.commit is None, staying=sent.staying)


def _plan(folder: Path, repo: str, *, public: bool, branch: str, message: str) -> Push:
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo or len(repo) > 96:
        raise InputError(f"{one_line(repo, 100)}: is no name of a repository; give OWNER/NAME")
    if not _BRANCH.fullmatch(branch):
        raise InputError(f"branch {one_line(branch, 100)}: is no name of a branch")
    if not message.strip():
        raise InputError("message: is empty; say in a few words what is pushed")
    manifest = read_manifest(folder)
    noted = manifest.files
    _check_card(folder / _CARD)
    files = [_as_it_is(folder, one) for one in [*noted, SharedFile(FILE, 0, "")]]
    return Push(
        folder=folder,
        repo=repo,
        private=not public,
        branch=branch,
        message=message.strip(),
        files=files,
        left_out=unlisted(folder, noted),
        warnings=_warnings(folder, noted, files),
        leaks=_leaks(folder, files, manifest.key_variables),
        account=hub.account(),
        hub=hub.address(),
    )


def _as_it_is(folder: Path, noted: SharedFile) -> SharedFile:
    """Raises InputError for one that is not there, or is a link: what it leads to may be anything."""
    path = folder / noted.path
    linked = any((folder / Path(*Path(noted.path).parts[:end])).is_symlink() for end in range(1, len(path.parts)))
    if linked:
        raise InputError(f"{one_line(path, 200)}: is a link, or in a linked folder; make the folder again with --force")
    try:
        return looked_at(folder, noted.path)
    except OSError as error:
        why = one_line(error.strerror or error)
        raise InputError(f"{one_line(path, 200)}: {why}; make the folder again with refed share … --force") from None


def _warnings(folder: Path, noted: Sequence[SharedFile], files: Sequence[SharedFile]) -> list[str]:
    before = {one.path: one.sha256 for one in noted}
    told = [f"{one.path}: changed since refed share" for one in files if before.get(one.path, one.sha256) != one.sha256]
    if not _names_license(folder / _CARD):
        told.append(f"{_CARD} names no license: nobody may use the data set as it is")
    for one in files:
        told += [f"{one.path}: holds what looks like {what}" for what in looks_like_keys(folder / one.path)]
    return told


def _leaks(folder: Path, files: Sequence[SharedFile], key_variables: Collection[str]) -> list[str]:
    secrets = known_secrets(key_variables)
    return [f"{one.path}: holds {what}" for one in files for what in holds_secrets(folder / one.path, secrets)]


def _names_license(card: Path) -> bool:
    from huggingface_hub import DatasetCard

    return (DatasetCard(card.read_text(encoding="utf-8")).data.get("license") or "unknown") != "unknown"


def _check_card(card: Path) -> None:
    """Raises InputError for a card that is not there, or whose front matter is none."""
    from huggingface_hub import DatasetCard

    try:
        DatasetCard(card.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{one_line(card, 200)}: {one_line(error.strerror or error)}; make the folder again") from None
    except Exception as error:  # noqa: BLE001 — YAML's own errors, and the library's
        raise InputError(f"{one_line(card, 200)}: its front matter is not YAML ({one_line(error, 120)})") from None
