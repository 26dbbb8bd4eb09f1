"""The push, through the real library, to a server on this machine that answers as the Hub does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from refed_dspy.errors import InputError
from refed_dspy.plugins.share.manifest import FILE
from refed_dspy.plugins.share.push import push
from tests.support.hub_server import READER, WRITER, FakeHub, Repo
from tests.support.said import Said

KEY = "sk-proj-0123456789abcdefghijklmn"
TOKEN = "hf_" + "a1" * 17
# The library reads the Hub's address, and whether to use Xet, when it is imported: so it runs in a separate process,
# shared by all tests. A line in: words and token; a line out: exit code, stdout, stderr.
CLIENT = """if True:
    import json, os, sys
    from typer.testing import CliRunner
    from refed_dspy.cli.main import app
    for line in sys.stdin:
        words, token = json.loads(line)
        os.environ["HF_TOKEN"] = token
        done = CliRunner().invoke(app, words)
        sys.__stdout__.write(json.dumps([done.exit_code, done.stdout, done.stderr, repr(done.exception)]) + chr(10))
        sys.__stdout__.flush()
"""


class Client:
    """`refed` in a process that takes the server for the Hub."""

    def __init__(self, hub: FakeHub, home: Path) -> None:
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "REFED_TRACK": "false"}
        environment = {**os.environ, **settings, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def push(self, *words: object, token: str = WRITER) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of `refed push`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([["push", *map(str, words)], token]) + "\n")
        self.process.stdin.flush()
        code, out, err, _ = json.loads(self.process.stdout.readline())
        assert WRITER not in out + err and READER not in out + err
        return code, out, err

    def refused(self, *words: object, code: int = 2, token: str = WRITER) -> str:
        """The line with which a push is refused."""
        got, _, err = self.push(*words, token=token)
        assert (got, err.count("\n")) == (code, 1) and err.startswith("refed: "), err
        return err


@pytest.fixture(scope="module")
def running_hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def hub(running_hub: FakeHub) -> FakeHub:
    running_hub.reset()
    return running_hub


@pytest.fixture(scope="module")
def client(running_hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(running_hub, tmp_path_factory.mktemp("home"))
    with client.process:
        yield client
        assert client.process.stdin is not None
        client.process.stdin.close()


def shown(out: str) -> dict[str, tuple[int, str]]:
    """What a push lists: path → bytes, SHA-256."""
    rows = [line.split() for line in out.splitlines() if line.startswith("  ")]
    return {path: (int(size.replace(",", "")), digest) for path, size, _, digest in rows}


def arrived(repo: Repo, branch: str = "main") -> dict[str, tuple[int, str]]:
    """The same of the files on the Hub."""
    files = {path: content for path, content in repo.branches[branch][-1].items() if path != ".gitattributes"}
    return {path: (len(content), hashlib.sha256(content).hexdigest()) for path, content in files.items()}


# --- a dry run


def without_files(out: str) -> list[str]:
    """What a push says besides its files; their sizes are other ones in each version."""
    return [re.sub(r"[\d,]+ bytes", "BYTES", line) for line in out.splitlines() if not line.startswith("  ")]


@pytest.mark.slow
def test_a_dry_run_asks_nothing_and_shows_all(said: Said, hub: FakeHub, client: Client, folder: Path) -> None:
    code, out, err = client.push(folder, "me/set")
    there = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert (code, err, hub.log) == (0, "", [])
    assert shown(out) == {
        path.relative_to(folder).as_posix(): (len(content), hashlib.sha256(content).hexdigest())
        for path, content in there.items()
    }
    said((without_files(out), without_files(client.push(folder, "me/set", "--public")[1])))


@pytest.mark.slow
def test_what_arrives_is_what_was_shown(said: Said, hub: FakeHub, client: Client, folder: Path) -> None:
    (folder / "mine.txt").write_text("not for others")
    _, dry, _ = client.push(folder, "me/set")
    code, out, err = client.push(folder, "me/set", "--go", "--message", message := "First rows")
    repo = hub.repos["me/set"]
    assert (code, err) == (0, "")
    said(without_files(out))
    assert arrived(repo) == shown(dry) == shown(out)
    assert (repo.private, len(repo.branches["main"]), repo.messages) == (True, 2, [message])
    assert "mine.txt" in dry and "mine.txt" not in repo.branches["main"][-1]


@pytest.mark.slow
def test_a_folder_whose_name_is_not_utf_8(hub: FakeHub, client: Client, folder: Path) -> None:
    other = folder.rename(folder.with_name(os.fsdecode(b"share\xff")))
    code, out, err = client.push(other, "me/set", "--go")
    assert (code, err) == (0, "") and arrived(hub.repos["me/set"]) == shown(out) != {}


@pytest.mark.slow
def test_again_makes_no_commit_and_uploads_nothing(hub: FakeHub, client: Client, folder: Path) -> None:
    client.push(folder, "me/set", "--go")
    hub.log.clear()
    code, out, err = client.push(folder, "me/set", "--go")
    assert (code, err) == (0, "") and "unchanged" in out and len(hub.repos["me/set"].branches["main"]) == 2
    assert not [path for _, path in hub.log if "commit" in path or "preupload" in path or "lfs" in path]


@pytest.mark.slow
def test_what_changed_goes_and_what_else_is_there_stays(said: Said, hub: FakeHub, client: Client, folder: Path) -> None:
    client.push(folder, "me/set", "--go")
    hub.repos["me/set"].branches["main"][-1]["data/older.parquet"] = b"older"
    with (folder / "README.md").open("a") as card:
        card.write("\nMore.\n")
    code, out, _ = client.push(folder, "me/set", "--go")
    assert code == 0
    said(without_files(out))
    assert arrived(hub.repos["me/set"])["README.md"] == shown(out)["README.md"]
    assert "data/older.parquet" in hub.repos["me/set"].branches["main"][-1]


@pytest.mark.slow
def test_a_branch_and_a_public_set(hub: FakeHub, client: Client, folder: Path) -> None:
    code, out, _ = client.push(folder, "lab/set", "--go", "--public", "--branch", "v2/rows")
    repo = hub.repos["lab/set"]
    assert code == 0 and not repo.private and len(repo.branches["main"]) == 1
    assert arrived(repo, "v2/rows") == shown(out)


@pytest.mark.slow
def test_a_list_of_ignored_files_on_the_hub_takes_nothing_away(hub: FakeHub, client: Client, folder: Path) -> None:
    hub.repos["me/set"] = Repo(private=True, ignores="parquet")
    code, out, _ = client.push(folder, "me/set", "--go")
    assert code == 0 and arrived(hub.repos["me/set"]) == shown(out)


# --- what is refused


@pytest.mark.slow
def test_tokens_and_rights(said: Said, hub: FakeHub, client: Client, folder: Path) -> None:
    tokens = {"none": "", "wrong": "hf_wrong", "reads": READER}
    said({name: client.refused(folder, "me/set", "--go", token=token) for name, token in tokens.items()})
    said(client.refused(folder, "nobody/set", "--go"))
    assert hub.repos == {}
    said(without_files(client.push(folder, "me/set", token="")[1]))


@pytest.mark.slow
def test_the_visibility_must_be_as_asked_for(said: Said, hub: FakeHub, client: Client, folder: Path) -> None:
    hub.repos |= {"me/open": Repo(private=False), "me/closed": Repo(private=True)}
    said([client.refused(folder, *words) for words in (("me/open", "--go"), ("me/closed", "--go", "--public"))])
    assert all(len(repo.branches["main"]) == 1 for repo in hub.repos.values()) and not hub.blobs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "status", "code"),
    [("/api/repos/create", 503, 1), ("/commit/", 500, 1), ("/commit/", 429, 1), ("/commit/", 413, 2),
     ("/api/validate-yaml", 400, 2)],
)  # fmt: skip
def test_a_hub_that_fails(
    said: Said, hub: FakeHub, client: Client, folder: Path, where: str, status: int, code: int
) -> None:
    hub.faults = {where: status}
    said(client.refused(folder, "me/set", "--go", code=code).replace(hub.url, "HUB"))
    hub.faults = {}
    assert client.push(folder, "me/set", "--go")[0] == 0 and len(hub.repos["me/set"].branches["main"]) == 2


@pytest.mark.slow
def test_a_commit_of_someone_else_meanwhile(said: Said, hub: FakeHub, client: Client, folder: Path) -> None:
    def meddle(path: str) -> None:
        if path.startswith("/lfs/"):
            hub.repos["me/set"].branches["main"].append({"theirs.txt": b"x"})

    hub.on_request = meddle
    said(client.refused(folder, "me/set", "--go", code=1))
    assert arrived(hub.repos["me/set"]).keys() == {"theirs.txt"}


@pytest.mark.slow
def test_a_file_that_changes_while_it_is_sent_is_not_committed(
    said: Said, hub: FakeHub, client: Client, folder: Path
) -> None:
    """A small one goes as it was read; of a large one, what was uploaded is not what was shown."""
    card = folder / "README.md"
    hub.on_request = lambda path: "/preupload/" in path and card.write_bytes(b"another card")
    code, out, _ = client.push(folder, "me/set", "--go")
    assert code == 0 and arrived(hub.repos["me/set"]) == shown(out)
    (folder / "LICENSE").write_bytes(b"a" * 11_000_000)
    manifest = json.loads((folder / FILE).read_text())
    manifest["files"]["LICENSE"] = {"bytes": 0, "sha256": ""}
    (folder / FILE).write_text(json.dumps(manifest))
    hub.on_request = lambda path: "/preupload/" in path and (folder / "LICENSE").write_bytes(b"b" * 11_000_000)
    card.write_bytes(hub.repos["me/set"].branches["main"][-1]["README.md"])
    said(client.refused(folder, "me/set", "--go"))
    assert len(hub.repos["me/set"].branches["main"]) == 2


def test_a_name_that_is_none(said: Said, folder: Path) -> None:
    for name in ("set", "me/", "me/a/b", "me/../x", "hf://me/set", "me/se t", "me/a--b", "-me/set"):
        with said.by(InputError):
            push(folder, name)


def test_folders_that_refed_share_did_not_make(said: Said, folder: Path, tmp_path: Path) -> None:
    for text in (
        "", "{", '{"format": 1, "files": {"../outside": {"bytes": 1, "sha256": ""}}}',
        '{"format": 1, "files": {"/etc/hostname": {"bytes": 1, "sha256": ""}}}', '{"format": 9, "files": {}}',
    ):  # fmt: skip
        (folder / FILE).unlink(missing_ok=True)
        if text:
            (folder / FILE).write_text(text)
        with said.by(InputError):
            push(folder, "me/set")
    with said.by(InputError):
        push(tmp_path / "none", "me/set")


def test_a_file_that_is_missing_or_a_link(said: Said, folder: Path, tmp_path: Path) -> None:
    data = folder / "data" / "train-00000-of-00001.parquet"
    data.rename(tmp_path / "moved.parquet")
    with said.by(InputError):
        push(folder, "me/set")
    data.symlink_to(tmp_path / "moved.parquet")
    with said.by(InputError):
        push(folder, "me/set")


def test_a_card_without_valid_front_matter(said: Said, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    with said.by(InputError):
        push(folder, "me/set")


# --- a login, and no network


@pytest.mark.slow
def test_the_token_of_a_login_does_not_go(said: Said, hub: FakeHub, client: Client, folder: Path) -> None:
    with (folder / "README.md").open("a") as card:
        card.write("an-odd-token-7391\n")
    (client.home / "token").write_text("an-odd-token-7391\n")
    try:
        code, out, err = client.push(folder, "me/set", token="")
        refused = client.refused(folder, "me/set", "--go", token="")
        assert (code, err) == (0, "") and "an-odd-token" not in out + refused
        said((without_files(out), refused))
    finally:
        (client.home / "token").unlink()
    assert hub.log == []


@pytest.mark.slow
def test_no_network(said: Said, folder: Path, tmp_path: Path) -> None:
    script = "import sys; from refed_dspy.cli import main; sys.argv[1:] = ['push', *sys.argv[1:], '--go']; main()"
    settings = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": WRITER, "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), "me/set"],
        env={**os.environ, **settings}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    said(done.stderr)
