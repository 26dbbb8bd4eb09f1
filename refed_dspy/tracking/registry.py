"""The registered model: every compiled program is a version of it; `challenger` the newest, `champion` a proved one."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.tracking.store import NotTracked, Store, mlflow_client

log = logging.getLogger("refed_dspy.tracking")
CHALLENGER, CHAMPION = "challenger", "champion"


@dataclass(frozen=True)
class Registered:
    """One version of the registered model: its number, and the state and manifest that its program file holds."""

    version: str
    state: Mapping[str, Any]


def register(store: Store, run_id: str, name: str, outcome: Mapping[str, Any]) -> None:
    """Make the run's program a version of `name`: the challenger, and the champion where that is proved.

    It is proved against the champion that the compile saw; where another one stands by now, nothing is promoted.
    """
    client = store.client
    version = store.noted("version")
    if version is None:
        try:
            client.get_registered_model(name)
        except Exception:  # noqa: BLE001 — MLflow tells "no such model" and worse by one class; the next call shows which
            store.told(client.create_registered_model, name)
        source = f"runs:/{run_id}/program"
        tags = {
            "refed.digest": outcome["candidate"],
            "refed.proved": str(bool((outcome.get("proof") or {}).get("proved"))),
        }
        made = store.told(client.create_model_version, name, source, run_id=run_id, tags=tags)
        version = str(made.version)
        store.remember(version=version)
        store.told(client.set_registered_model_alias, name, CHALLENGER, version)
    if not (outcome.get("proof") or {}).get("proved") or store.noted("promoted"):
        return
    now, then = _version_of(client, name, CHAMPION), outcome.get("champion")
    if now == then:
        store.told(client.set_registered_model_alias, name, CHAMPION, version)
        store.remember(promoted=True)
        log.info("%s version %s is champion", name, version)
    else:
        log.warning(
            "%s version %s is not promoted: it was proved against %s, and the champion is now version %s",
            name, version, f"version {then}" if then else "the uncompiled program", now,
        )  # fmt: skip


def champion(name: str) -> Registered | None:
    """The present champion of `name`; None where there is none. Raises NotTracked where MLflow cannot say."""
    try:
        client = mlflow_client()
        if not client.search_registered_models(filter_string=f"name = '{name}'"):
            return None
        if (version := _version_of(client, name, CHAMPION)) is None:
            return None
        import mlflow

        with tempfile.TemporaryDirectory() as folder:
            path = mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{name}/{version}", dst_path=folder)
            state = json.loads((Path(path) / "program.json").read_text(encoding="utf-8"))
    except Exception as error:
        raise NotTracked(one_line(error, 200)) from error
    return Registered(version, state)


def promote(name: str, version: str | None = None) -> str:
    """Make a version of `name` the champion, the challenger if none is named. Returns its number.

    Raises:
        ConfigError: no such model or version, or MLflow cannot be reached.
    """
    try:
        client = mlflow_client()
        chosen = version or _version_of(client, name, CHALLENGER)
        if chosen is None:
            raise ConfigError(f"promote: {name} has no {CHALLENGER}; name a version: --version N")
        client.get_model_version(name, chosen)
        client.set_registered_model_alias(name, CHAMPION, chosen)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 — MLflow's own, and its HTTP client's
        raise ConfigError(f"promote: {name}: MLflow says: {one_line(error, 200)}") from None
    return str(chosen)


def _version_of(client: Any, name: str, alias: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise
