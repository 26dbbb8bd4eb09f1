"""Where MLflow stores runs and programs; the addresses of programs (`models:/…`, `runs:/…`), and their download."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any, ParamSpec, TypeVar

import platformdirs

from refed_dspy.concurrency import within
from refed_dspy.config.keys import holds_key, is_secret_name, know, know_environment, without_keys
from refed_dspy.errors import ConfigError, Wording, one_line

P = ParamSpec("P")
T = TypeVar("T")
TEXTS_TAG = "refed.texts"
"""A registered version's tag: the digest of its prompts (`saved.prompts_digest`). Earlier versions have none."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow's defaults are 7 attempts of 120 s each: minutes of waiting for a server that is down.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
_LOCAL_PATIENCE = 600.0
"""Seconds for a store that is a file: at its first use it makes its tables."""
_PROFILE = re.compile(r"^databricks(?:-uc)?://([^/?\s]+)")
_CHAMPION = re.compile(r"models:/([^/@]+)@champion")
_GAVE_UP = re.compile(
    r"HTTPS?ConnectionPool\(.*?\(Caused by (?:\w+\()*[\"']?(?:HTTPS?Connection\([^)]*\): )?(.*?)[\"']?\)*$", re.DOTALL
)
"""What its HTTP client says of a server that cannot be reached: the reason stands last, where a line may be cut."""
_PARAMETER = re.compile(r"([?&])([^=&?\s]+)=([^&\s'\"]+)")


def is_address(name: str) -> bool:
    """Whether `name` is an MLflow address, and not a file."""
    return name.partition(":/")[0] in {"runs", "models", "mlflow-artifacts"}


def quiet_mlflow() -> Any:
    """The module `mlflow`, imported here because that takes seconds. Telemetry, log messages and long retries are
    turned off, except where the user has set the variables."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow

    # Importing MLflow has just set their levels. The last one tells addresses, with what is secret in them.
    for noisy in ("alembic", "mlflow", "urllib3.connectionpool"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    return mlflow


def tracking_uri() -> str:
    """Where runs and programs are stored: MLFLOW_TRACKING_URI (which `mlflow.set_tracking_uri` sets, too), else one
    SQLite file in the user's data folder, so that they are found from any working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{platformdirs.user_data_path('refed-dspy')}/mlflow.db"


def store_folder() -> Path | None:
    """The folder of the store where that is a SQLite file, else None."""
    scheme, _, file = tracking_uri().partition(":///")
    return Path(file).absolute().parent if scheme == "sqlite" else None


def mlflow_client() -> Any:
    """An `MlflowClient` of that store. The process's own address is left as it is: a notebook may log its own work
    elsewhere. Raises what MLflow does, and OSError where the data folder cannot be made."""
    mlflow = quiet_mlflow()
    if (folder := store_folder()) is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return mlflow.MlflowClient(tracking_uri=tracking_uri())


def patience() -> float:
    """Seconds that MLflow gets for each thing that it is asked: three of its own time-outs
    (MLFLOW_HTTP_REQUEST_TIMEOUT), which hold for each byte, or one for each attempt where that is more."""
    if store_folder() is not None:
        return _LOCAL_PATIENCE
    return _number("MLFLOW_HTTP_REQUEST_TIMEOUT") * max(3, 1 + _number("MLFLOW_HTTP_REQUEST_MAX_RETRIES"))


def _number(variable: str) -> float:
    """What is set, or else ours; MLflow itself says what is wrong with it."""
    try:
        return float(os.environ.get(variable) or _QUIET[variable])
    except ValueError:
        return float(_QUIET[variable])


def ask_mlflow(ask: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
    """What `ask`, which asks MLflow, returns or raises. Raises OutOfTime after `patience` seconds."""
    quiet_mlflow()  # here: its import takes seconds, and asks nobody
    return within(patience(), ask, *arguments, **keywords)


def downloaded(address: str, to: str | None = None) -> Path:
    """The local file or folder of an artifact's address. Raises what MLflow does."""
    artifacts, client = quiet_mlflow().artifacts, mlflow_client()
    if address.startswith("models:/") and store_folder() is not None:
        # MLflow looks these up at the process's own address only, which need not be set.
        from mlflow.store.artifact.utils.models import get_model_name_and_version

        named = get_model_name_and_version(client, address)
        if len(named) == 2:
            address = client.get_model_version_download_uri(*named)
    return Path(artifacts.download_artifacts(artifact_uri=address, dst_path=to, tracking_uri=client.tracking_uri))


def without_secrets(text: object, limit: int = 300) -> str:
    """`text` in one line, without the secrets that an MLflow address may hold: user and password, a parameter with a
    token, and a token in place of a profile (`databricks://TOKEN`)."""
    know_environment()
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        address = os.environ.get(variable, "")
        for secret in _PROFILE.findall(address) + [
            value for _, name, value in _PARAMETER.findall(address) if is_secret_name(name)
        ]:
            know(secret)  # MLflow's errors tell it without the address, too
    clean = re.sub(r"://[^/\s@]*@", "://", without_keys(_GAVE_UP.sub(r"\1", str(text))))
    return one_line(_PARAMETER.sub(_without_secret, clean), limit)


def _without_secret(parameter: re.Match[str]) -> str:
    mark, name, value = parameter.groups()
    return f"{mark}{name}=…" if is_secret_name(name) or holds_key(value) else parameter[0]


def fetch_program(address: str) -> tuple[Path, Any | None]:
    """The local file of the program at `address`, and the version of a registered model that `models:/…` means now;
    None for any other address. Raises ConfigError."""
    try:
        version = ask_mlflow(_version_at, address) if address.startswith("models:/") else None
        local = ask_mlflow(downloaded, f"models:/{version.name}/{version.version}" if version else address)
    except Exception as error:  # noqa: BLE001 — MLflow's own, and its HTTP client's
        if (name := _CHAMPION.fullmatch(address)) and "alias champion not found" in str(error):
            python = f"refed_dspy.promote({name[1]!r}, unproved=True)"
            raise ConfigError(
                f"program {address}: {name[1]} has no champion yet: no compile of it was proved better; promote one "
                "anyway with: " + Wording(python, f"refed compile promote {quote(name[1])} --unproved")
            ) from None
        raise ConfigError(f"program {address}: MLflow cannot provide it: {without_secrets(error)}") from None
    return local / "program.json" if local.is_dir() else local, version


def _version_at(address: str) -> Any | None:
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    client = mlflow_client()
    named = get_model_name_and_version(client, address)
    return client.get_model_version(*named) if len(named) == 2 else None
