"""The registered model: each compiled program is a version. `challenger` is the newest, `champion` a proved one."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from refed_dspy.config.keywords import checked
from refed_dspy.errors import ConfigError, briefly, one_line, setting
from refed_dspy.measures.intervals import Interval
from refed_dspy.programs.mlflow_address import TEXTS_TAG, ask_mlflow, downloaded, mlflow_client, without_secrets
from refed_dspy.programs.saved import manifest_of, prompts_digest, state_in
from refed_dspy.tracking.model import log_model, register_prompts
from refed_dspy.tracking.store import NotTracked, Store

log = logging.getLogger("refed_dspy.tracking")
CHALLENGER, CHAMPION = "challenger", "champion"
PROGRAM = "program.json"
PROVED, RESTS, GAIN = "refed.proved", "refed.rests_on_length", "refed.gain"
"""A version's tags: whether its gain was proved, whether it rests on length, and the gain itself, for people."""


@dataclass(frozen=True)
class Registered:
    """One version of the registered model: its number, and the state and manifest that its program file holds."""

    version: str
    state: Mapping[str, Any]

    @property
    def manifest(self) -> dict[str, Any]:
        """As `manifest_of`."""
        return manifest_of(self.state)

    @property
    def seen(self) -> Collection[str]:
        """The clusters of examples that it was tuned on."""
        seen: Collection[str] = self.manifest.get("seen", ())
        return seen


def register(store: Store, run_id: str, name: str, outcome: Mapping[str, Any]) -> None:
    """Make the run's program a version of `name`: the challenger, and the champion where that is proved.

    Its proof is against the champion at the time of the compile; if there is another champion now, nothing is promoted.
    """
    version = _registered(store, run_id, name, outcome)
    if (outcome.get("proof") or {}).get("proved") and store.noted("promoted") != version:
        _promote_proved(store, name, version, outcome)
    if store.noted("prompts") != version:  # last: the rest does not depend on it
        register_prompts(store, name, version, _state(store))
        store.remember(prompts=version)


def _promote_proved(store: Store, name: str, version: str, outcome: Mapping[str, Any]) -> None:
    current, compared_with = store.call(_version_of, store.client, name, CHAMPION), outcome.get("champion")
    if current in {compared_with, version}:
        store.call(store.client.set_registered_model_alias, name, CHAMPION, version)
        store.remember(promoted=version)
        log.info("%s version %s is champion", name, version)
    else:
        log.warning(
            "%s version %s is not promoted: it was proved against %s, and the champion is now version %s",
            name, version, f"version {compared_with}" if compared_with else "the uncompiled program", current,
        )  # fmt: skip


def _registered(store: Store, run_id: str, name: str, outcome: Mapping[str, Any]) -> str:
    """The version of the outcome's program; created, with its own copy of the file, if there is none yet.

    A compile that continued after a cap may end with another program: that is another version.
    """
    versions = dict(store.noted("versions") or {})
    candidate = outcome["candidate"]
    client, folder = store.client, f"programs/{candidate}"
    proof = outcome.get("proof") or {}
    proved = {PROVED: str(bool(proof.get("proved"))), RESTS: str(bool(proof.get("rests_on_length")))}
    proved[GAIN] = _gain(proof)
    if candidate in versions:
        store.file(run_id, store.folder / PROGRAM, folder)
        for tag, value in proved.items():
            store.call(client.set_model_version_tag, name, str(versions[candidate]), tag, value)
    else:
        log_model(store, run_id, store.folder / PROGRAM, state := _state(store), folder)
        if not store.call(client.search_registered_models, filter_string=f"name = '{name}'"):
            store.call(client.create_registered_model, name)
        tags = {
            "refed.digest": candidate,
            TEXTS_TAG: prompts_digest(state),
            "refed.changed": str(candidate != outcome["baseline"]),
            **proved,
        }
        made = store.call(client.create_model_version, name, f"runs:/{run_id}/{folder}", run_id=run_id, tags=tags)
        versions[candidate] = str(made.version)
        store.remember(versions=versions)
    version = str(versions[candidate])
    # Once for each version: copied again later, it must not displace a newer one.
    if store.noted("challenger") != version:
        store.call(client.set_registered_model_alias, name, CHALLENGER, version)
        store.remember(challenger=version)
    return version


def _state(store: Store) -> Any:
    """The state of the compile's program."""
    return state_in((store.folder / PROGRAM).read_text(encoding="utf-8"))


def _gain(proof: Mapping[str, Any]) -> str:
    """The gain in a proof's facts, with its 98.5% interval: against the champion where there was one."""
    if (gain := proof.get("over_champion")) is not None:
        return f"{Interval.of_stored(gain)} against the champion"
    if (gain := proof.get("gain")) is not None:
        return f"{Interval.of_stored(gain)} against the uncompiled program"
    return "none measured: the compile ended before its proof"


def champion(name: str) -> Registered | None:
    """The current champion of `name`, or None. Raises NotTracked where MLflow fails."""
    try:
        return ask_mlflow(_champion, name)
    except Exception as error:  # noqa: BLE001 — MLflow's own, its HTTP client's, a damaged file
        raise NotTracked(without_secrets(error, 200)) from None


def _champion(name: str) -> Registered | None:
    client = mlflow_client()
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        return None
    if (version := _version_of(client, name, CHAMPION)) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = downloaded(f"models:/{name}/{version}", folder)
        state = state_in((path / PROGRAM).read_text(encoding="utf-8"))
    if client.get_model_version(name, version).tags.get(TEXTS_TAG) not in {None, prompts_digest(state)}:
        raise NotTracked(f"{PROGRAM} of {name} version {version} is not the registered file")
    return Registered(version, state)


@briefly
@checked
def promote(name: str, version: str | None = None, accept_longer: bool = False, unproved: bool = False) -> str:
    """Make a version of `name` the champion; without `version`, the challenger. Returns its number.

    Raises:
        ConfigError: no such model or version, or MLflow cannot be reached; or its gain was not proved, unless
            `unproved`; or rests on length, unless `accept_longer` or `unproved`.
    """
    try:
        return ask_mlflow(_promoted, name, version, accept_longer, unproved)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 — MLflow's own, and its HTTP client's
        raise ConfigError(f"promote: {name}: MLflow says: {without_secrets(error, 200)}") from None


def _promoted(name: str, version: str | None, accept_longer: bool, unproved: bool) -> str:
    client = mlflow_client()
    _check_registered(client, name)
    promoted = version or _version_of(client, name, CHALLENGER)
    if promoted is None:
        raise ConfigError(f"promote: {name} has no {CHALLENGER}; choose one with " + setting("version"))
    if not unproved and (refusal := _refusal(client.get_model_version(name, promoted).tags, accept_longer)):
        raise ConfigError(f"promote: {name} version {promoted}: " + refusal)
    client.set_registered_model_alias(name, CHAMPION, promoted)
    return str(promoted)


def _check_registered(client: Any, name: str) -> None:
    """Raises ConfigError where MLflow has no model of this name."""
    if client.search_registered_models(filter_string=f"name = '{name}'"):
        return
    names = ", ".join(model.name for model in client.search_registered_models())
    have = f"it has {one_line(names, 120)}" if names else "it has none; compile a program first"
    raise ConfigError(
        f"promote: no registered model {one_line(name, 40)} in {without_secrets(client.tracking_uri, 120)}: {have}"
    )


def _refusal(tags: Mapping[str, str], accept_longer: bool) -> str:
    """Why a version with these tags is not promoted, and the word that would do it; empty where it is."""
    measured = one_line(tags.get(GAIN, "not recorded"), 120)
    gain = f"{'change' if measured.startswith('-') else 'gain'} {measured}"
    if tags.get(RESTS) == str(True):
        anyway = "to promote it anyway, use " + setting("accept_longer", True)
        return "" if accept_longer else f"its gain rests on length ({gain}); " + anyway
    if tags.get(PROVED) == str(True):
        return ""
    return f"its gain was not proved ({gain}); promote it anyway with " + setting("unproved", True)


def _version_of(client: Any, name: str, alias: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise
