"""The environment of a benchmark's code: made once, made again where it was left half-made, or named by a person."""

from __future__ import annotations

import logging
import re
import shutil
import sys
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from refed_dspy.errors import ConfigError, InputError
from refed_dspy.plugins.evaluate import program as environments
from refed_dspy.plugins.evaluate.program import ALPACA_EVAL, ARENA_HARD, LM_EVAL, Package, environment
from tests.support.said import Said

METADATA = "Metadata-Version: 2.1\nName: tiny-bench\nVersion: 1.2\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A package of one module, whose wheel is a file here: nothing is downloaded."""
    monkeypatch.setenv("REFED_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "tiny_bench-1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_bench/__init__.py", "")
        archive.writestr("tiny_bench-1.2.dist-info/METADATA", METADATA)
        archive.writestr("tiny_bench-1.2.dist-info/WHEEL", WHEEL)
        archive.writestr("tiny_bench-1.2.dist-info/RECORD", "")
    listed = tmp_path / "requirements.txt"
    listed.write_text(f"{wheel.as_uri()} --hash=sha256:{sha256(wheel.read_bytes()).hexdigest()}\n", "utf-8")
    return Package("tiny-bench", "1.2", "tiny_bench", listed, 5)


def steady(text: str) -> str:
    """Without what is another on each machine: the room there is, and the folder's name."""
    return re.sub("[0-9,.]+ MB free", "so many MB free", re.sub(r"py3\.\d+-[0-9a-f]{8}", "DIGEST", text))


@pytest.mark.parametrize("with_uv", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_it_is_made_once(
    said: Said, package: Package, with_uv: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not with_uv:
        monkeypatch.setattr(environments, "_uv", lambda: None)
    caplog.set_level(logging.INFO, "refed_dspy.environments")
    first = environment(package)
    assert first.version == "1.2" and first.folder.name == "tiny_bench" and first.python.is_file()
    said(list(map(steady, caplog.messages)))
    caplog.clear()
    made = first.folder.stat().st_mtime_ns
    assert environment(package) == first and not caplog.text and first.folder.stat().st_mtime_ns == made


def test_one_that_was_left_half_made_is_made_again(package: Package) -> None:
    made = environment(package)
    folder = made.python.parents[1]
    next(folder.glob("refed-*")).unlink()  # it is written last
    shutil.rmtree(made.folder)
    (folder / "left").touch()
    assert environment(package) == made and made.folder.is_dir() and not (folder / "left").exists()


def test_a_file_other_than_the_pinned_one_is_refused_and_leaves_none(package: Package, tmp_path: Path) -> None:
    package.requirements.write_text(package.requirements.read_text().replace("sha256:", "sha256:0")[:-2] + "\n")
    with pytest.raises(InputError, match=r"(?i)hash"):
        environment(package)
    assert not list((tmp_path / "cache").glob("*/*/refed-*"))


def test_where_there_is_no_room_or_no_permission_nothing_is_made(said: Said, package: Package, tmp_path: Path) -> None:
    with pytest.raises(InputError) as no_room:
        environment(replace(package, megabytes=10**9))
    said(steady(str(no_room.value)))
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").touch()
    with pytest.raises(InputError) as no_folder:
        environment(package)
    said(steady(str(no_folder.value)))


def test_one_that_is_named_must_have_the_package(
    said: Said, package: Package, caplog: pytest.LogCaptureFixture
) -> None:
    for chosen in (Path(sys.executable), Path(sys.prefix), Path("/nowhere")):
        with said.by(ConfigError):
            environment(package, chosen)
    there = environment(Package("pytest", "0.0", "pytest", package.requirements, 5), Path(sys.executable))
    assert there.folder == Path(pytest.__file__).parent and "0.0" in caplog.text


def test_a_package_may_come_after_its_requirements_as_the_index_has_it(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch is another build on another machine, so no hash fits. With uv its own index is asked first, and the usual
    one where that cannot be reached."""
    steps = environments._commands(ARENA_HARD, tmp_path)
    assert [step[0][-1] for step in steps] == [str(tmp_path), str(ARENA_HARD.requirements), "torch==2.13.0"]
    assert "cpu" in steps[-1][0] and steps[-1][1][-1] == "torch==2.13.0" and "cpu" not in steps[-1][1]
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("UV_OFFLINE", "1")
    package.requirements.write_text("")
    made = environment(replace(package, unhashed=True))
    assert made.version == "1.2"


def test_what_is_pinned_is_what_is_named() -> None:
    for named in (ALPACA_EVAL, LM_EVAL):
        assert f"\n{named.name}=={named.version} \\\n" in named.requirements.read_text("utf-8").replace("[ifeval]", "")
    pinned = ALPACA_EVAL.requirements.read_text("utf-8")
    assert f"\n{ALPACA_EVAL.name}=={ALPACA_EVAL.version} \\\n" in pinned and "\ndatasets==3." in pinned
    assert pinned.count("==") <= pinned.count("--hash=sha256:")
