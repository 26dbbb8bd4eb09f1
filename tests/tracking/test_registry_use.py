"""Promoting a version by hand, and using one."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from refed_dspy import ReferenceLevelFeedback, synthesize
from refed_dspy.errors import ConfigError
from refed_dspy.programs.load import load_into, load_program
from refed_dspy.programs.mlflow_address import TEXTS_TAG
from refed_dspy.programs.saved import program_digests, save_program
from refed_dspy.tracking.registry import champion, promote
from refed_dspy.tracking.store import NotTracked
from tests.support import mlflow_stores
from tests.support.command_line import refed
from tests.support.mlflow_stores import Mlflow, free_port
from tests.support.registered_programs import Compile, champion_is, outcome, refused, tuned
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references

mlflow_template, tracked = mlflow_stores.mlflow_template, mlflow_stores.tracked

# --- promoting by hand


def test_promote_makes_the_challenger_champion(said: Said, tracked: Mlflow) -> None:
    for number in (1, 2):
        Compile(f"c{number}").register(outcome(f"p{number}"))
    assert promote("refed", unproved=True) == "2" and champion_is("2", tracked)
    assert promote("refed", "1", unproved=True) == "1" and champion_is("1", tracked)
    result = refed("compile", "promote", "refed", "--version", 2, "--unproved")
    assert result.exit_code == 0
    said(result.output)
    assert champion_is("2", tracked)


def test_what_was_not_proved_is_promoted_by_a_word_alone_and_its_gain_is_told(said: Said, tracked: Mlflow) -> None:
    def gain(mean: float) -> dict[str, Any]:
        return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 64, "clusters": 16}

    worse = {"proved": False, "gain": gain(-0.04)}
    Compile("one").register({**outcome("p1"), "proof": worse})
    said(refused(refed("compile", "promote")))
    assert refused(refed("compile", "promote", "--accept-longer"))
    Compile("two").register({**outcome("p2"), "proof": {**worse, "champion": {}, "over_champion": gain(0.05)}})
    Compile("three").register({**outcome("p3"), "proof": None})
    with said.by(ConfigError):
        promote("refed")
    assert champion_is(None, tracked)
    assert refed("compile", "promote", "--unproved").exit_code == 0 and champion_is("3", tracked)
    Compile("four").register({**outcome("p4"), "proof": {"proved": True, "gain": gain(0.2)}})
    assert promote("refed") == "4" and champion_is("4", tracked)


def test_promote_says_in_one_line_what_is_not_there(said: Said, tracked: Mlflow) -> None:
    told = [refused(refed("compile", "promote"))]
    Compile("c").register(outcome("p"))
    told.append(refused(refed("compile", "promote", "nosuch", "--version", "1")))
    told += [refused(refed("compile", "promote", "refed", "--version", word)) for word in ("7", "latest")]
    said(told)
    with pytest.raises(ConfigError):
        promote("refed", "7")
    assert champion_is(None, tracked)
    tracked.use(f"http://127.0.0.1:{free_port()}")
    said(refused(refed("compile", "promote")))


def files_of(version: str, store: Mlflow) -> Path:
    """Where a version's program is."""
    where = Path(store.client.get_model_version_download_uri("refed", version).removeprefix("file://"))
    if where.is_dir():
        return where
    run, _, rest = str(where).removeprefix("runs:/").partition("/")  # runs:/ID/PATH
    return store.home / "artifacts" / run / "artifacts" / rest


# --- a version in use


def armed(version: str, store: Mlflow, proof: Path) -> None:
    """Put a pickle that leaves `proof` when it is loaded beside a version's program, under every name there is."""

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (proof,))

    assert not proof.exists()
    where = files_of(version, store)
    for name in ("program.pkl", "model.pkl", "python_model.pkl", "state.pickle"):
        (where / name).write_bytes(pickle.dumps(Bomb()))
    (where / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n    python_model: python_model.pkl\n"
    )


@pytest.mark.slow
def test_a_version_is_used_without_unpickling_anything(tracked: Mlflow, tmp_path: Path) -> None:
    program, proof = tuned("Be brief."), tmp_path / "unpickled"
    Compile("c").register(outcome("p", proved=True), program)
    armed("1", tracked, proof)
    for address in ("models:/refed@champion", "models:/refed@challenger", "models:/refed/1"):
        opened = load_program(address)
        assert program_digests(opened) == program_digests(program)
        assert opened.source["address"] == address and opened.source["version"] == "1"
    registered = champion("refed")
    assert registered is not None and registered.version == "1"
    run = synthesize("models:/refed@champion", references(2), size=2, teacher=fake_lm(Writer()), run_dir="run")
    assert run.complete and not proof.exists()


def test_a_version_whose_file_is_not_what_was_registered_is_refused(said: Said, tracked: Mlflow) -> None:
    """Its own digests fit: whoever changed the file has saved it again."""
    Compile("c").register(outcome("p", proved=True), tuned("Be brief."))
    load_program("models:/refed@champion")
    changed = tuned("Insult the reader.")
    save_program(changed, files_of("1", tracked) / "program.json")
    for address in ("models:/refed@champion", "models:/refed/1", "models:/refed/latest"):
        with said.by(ConfigError):
            load_program(address)
    with said.by(ConfigError):
        load_into(ReferenceLevelFeedback(), "models:/refed@champion")
    with said.by(NotTracked):
        champion("refed")
    assert program_digests(load_program("models:/refed@champion", accept_changed=True)) == program_digests(changed)


def test_a_version_from_before_its_texts_had_a_digest_loads(tracked: Mlflow) -> None:
    program = tuned("Be brief.")
    Compile("c").register(outcome("p", proved=True), program)
    tracked.client.delete_model_version_tag("refed", "1", TEXTS_TAG)
    assert tracked.version("1").tags["refed.digest"] == "p", "which is the candidate's, and never compared"
    registered = champion("refed")
    assert registered is not None and registered.version == "1"
    assert program_digests(load_program("models:/refed@champion")) == program_digests(program)


def test_an_address_of_nothing_is_one_line_and_is_not_asked_for_for_minutes(
    said: Said, tracked: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES

    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    Compile("c").register(outcome("p"))
    for address in ("models:/refed@champion", "models:/refed/9", "models:/nosuch/1", "models:/refed"):
        with said.by(ConfigError) as raised:
            load_program(address)
        assert "\n" not in str(raised.value)
    assert MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() <= 2


def test_a_version_has_the_features_that_it_was_compiled_with(said: Said, tracked: Mlflow) -> None:
    features = {"mood": "the mood it is in", "length": "how long it is"}
    manifest = outcome(
        "p", features=features, instructions_per_feature=4, models={"teacher": {"model": "sim/tuned-with"}}
    )
    a_compile = Compile("c")
    a_compile.register(manifest, tuned(features=features))
    opened = load_program("models:/refed@challenger")
    assert opened.features == features and opened.instructions_per_feature == 4
    assert opened.source["teacher"] == "sim/tuned-with" and opened.source["run_id"] == a_compile.run_id
    assert load_program("models:/refed@challenger", features, 7).instructions_per_feature == 7
    with said.by(ConfigError):
        load_program("models:/refed@challenger", {"topic": "what it is about", "mood": "the mood"})


def test_another_teacher_than_it_was_tuned_with_is_warned_of(
    said: Said, tracked: Mlflow, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = outcome("p", models={"teacher": {"model": "sim/tuned-with"}})
    Compile("c").register(manifest)
    synthesize("models:/refed@challenger", references(2), size=1, teacher=fake_lm(Writer()), run_dir="run")
    said(caplog.text)
