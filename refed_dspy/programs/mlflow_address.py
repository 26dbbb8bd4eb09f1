"""A program kept in MLflow: its address (`models:/…`, `runs:/…`), and how it is fetched."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from refed_dspy.errors import ConfigError, one_line


def is_address(name: str) -> bool:
    """Whether `name` is an MLflow address and not a file."""
    return name.partition(":/")[0] in {"runs", "models", "mlflow-artifacts"}


_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow's own are 7 attempts and 120 s each: minutes of waiting for a server that is away.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def quiet_mlflow() -> Any:
    """MLflow, imported as late as that since it takes seconds: without telemetry, chatter and minutes of retries, where
    the user has not set them."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow

    for noisy in ("alembic", "mlflow"):  # importing it has just set levels of its own
        logging.getLogger(noisy).setLevel(logging.ERROR)
    return mlflow


def without_password(text: object) -> str:
    """`text` in one line, and without the user and password of any address in it."""
    return re.sub(r"://[^/\s@]*@", "://", one_line(text))


def _download(address: str) -> Path:
    """Fetch a program's JSON from MLflow. Imported here: it takes seconds and most runs have no use for it."""
    mlflow = quiet_mlflow()
    try:
        local = Path(mlflow.artifacts.download_artifacts(artifact_uri=address))
    except Exception as error:  # noqa: BLE001 — MLflow's own, and its HTTP client's
        raise ConfigError(f"program {address}: MLflow cannot provide it: {without_password(error)}") from None
    return local / "program.json" if local.is_dir() else local


_MODEL = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/]+))$")


def _version(address: str) -> dict[str, str]:
    """Which version of a registered model an address stands for today."""
    if not is_address(address) or (found := _MODEL.fullmatch(address)) is None:
        return {}
    version = found["version"]
    if version is None:
        mlflow = quiet_mlflow()
        try:
            version = str(mlflow.MlflowClient().get_model_version_by_alias(found["name"], found["alias"]).version)
        except Exception as error:  # noqa: BLE001 — MLflow's own, and its HTTP client's
            raise ConfigError(f"program {address}: MLflow cannot provide it: {without_password(error)}") from None
    return {"model": found["name"], "version": version}
