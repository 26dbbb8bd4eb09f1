"""The registered model: versions, challenger and champion, and a version in use."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from benchmarks.preference import Preference
from refed_dspy import ReferenceLevelFeedback, synthesize
from refed_dspy.errors import ConfigError
from refed_dspy.optimizers.steps import champion_for
from refed_dspy.programs.load import load_into, load_program
from refed_dspy.programs.mlflow_address import TEXTS_TAG
from refed_dspy.programs.saved import program_digests, program_state, prompts_digest, save_program
from refed_dspy.tracking.registry import champion, promote
from refed_dspy.tracking.store import NotTracked, Store
from tests.support import mlflow_stores
from tests.support.command_line import refed
from tests.support.compiling import Answerer, compiled, questions
from tests.support.interrupted_compiles import full_marks
from tests.support.mlflow_stores import Mlflow
from tests.support.registered_programs import Compile, champion_is, outcome, refused, tuned
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references
from tests.tracking.test_compile import BETTER, compiled_in_the_world

mlflow_template, tracked = mlflow_stores.mlflow_template, mlflow_stores.tracked


def digest_of(text: str) -> str:
    """The digest of the prompts that `Compile.register` makes of a candidate's name."""
    return prompts_digest(program_state(tuned(text)))


# --- versions and aliases


@pytest.mark.slow
def test_every_program_is_a_version_and_the_newest_the_challenger(tracked: Mlflow) -> None:
    for number in (1, 2):
        a_compile = Compile(f"c{number}")
        for _ in range(2):  # the same program again is no version more
            a_compile.register(outcome(f"p{number}"))
        assert tracked.aliases() == {"challenger": str(number)}
        made = tracked.version(str(number))
        assert made.tags["refed.texts"] == digest_of(f"p{number}") and made.tags["refed.proved"] == "False"
        assert made.tags["refed.digest"] == f"p{number}"
    assert tracked.version("2").run_id != tracked.version("1").run_id
    assert len(tracked.client.search_model_versions("name='refed'")) == 2


def test_only_a_proved_one_is_champion(tracked: Mlflow) -> None:
    one = Compile("one")
    one.register({**outcome("p1"), "proof": None})
    assert champion_is(None, tracked)
    one.register(outcome("p1", proved=True))
    assert champion_is("1", tracked) and tracked.version("1").tags["refed.proved"] == "True", "its proof came later"
    Compile("two").register({**outcome("p2"), "proof": None})
    assert champion_is("1", tracked) and tracked.aliases()["challenger"] == "2"
    Compile("three").register(outcome("p3", proved=True, against="1"))
    assert champion_is("3", tracked) and tracked.version("3").tags["refed.proved"] == "True"


@pytest.mark.slow
@pytest.mark.parametrize("against", [None, "1"])
def test_not_promoted_where_the_champion_changed_meanwhile(
    said: Said, tracked: Mlflow, against: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    Compile("one").register(outcome("p1", proved=True))
    Compile("two").register(outcome("p2", proved=True, against="1"))
    Compile("three").register(outcome("p3", proved=True, against=against))
    assert champion_is("2", tracked) and tracked.aliases()["challenger"] == "3"
    said([r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING])


def test_a_gain_that_rests_on_length_is_promoted_by_a_word_alone(said: Said, tracked: Mlflow) -> None:
    a_compile, rests = Compile("c"), {"proved": False, "rests_on_length": True}
    a_compile.register({**outcome("p"), "proof": rests})
    assert tracked.version("1").tags["refed.rests_on_length"] == "True" and champion_is(None, tracked)
    said(refused(refed("compile", "promote")))
    assert champion_is(None, tracked)
    assert refed("compile", "promote", "--accept-longer").exit_code == 0 and champion_is("1", tracked)
    told = Compile("told")
    told.register({**outcome("q", against="1"), "proof": {"proved": True, "rests_on_length": True}})
    assert champion_is("2", tracked), "where the compile was told to accept it"


def test_what_a_person_made_champion_is_not_unmade_by_copying_again(tracked: Mlflow) -> None:
    Compile("one").register(outcome("p1", proved=True))
    two = Compile("two")
    two.register(outcome("p2", proved=True, against="1"))
    promote("refed", "1")
    two.register(outcome("p2", proved=True, against="1"))
    assert champion_is("1", tracked)


def test_another_program_of_the_same_compile_is_another_version_and_the_first_stays_as_it_was(tracked: Mlflow) -> None:
    """A compile that went on after a cap."""
    a_compile = Compile("c")
    a_compile.register(outcome("first"))
    before = load_program("models:/refed/1")
    a_compile.register(outcome("second", proved=True))
    assert tracked.aliases() == {"challenger": "2", "champion": "2"}
    assert program_digests(load_program("models:/refed/1")) == program_digests(before)
    assert tracked.version("2").tags["refed.texts"] == digest_of("second")
    assert program_digests(load_program("models:/refed@champion")) == program_digests(tuned("second"))


def test_a_server_that_goes_between_version_and_alias(tracked: Mlflow) -> None:
    class Going(Store):
        def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(function, "__name__", "") == "set_registered_model_alias":
                raise NotTracked("gone")
            return super().call(function, *args, **kwargs)

    a_compile = Compile("c")
    going = Going(a_compile.folder)
    going.connect()
    with pytest.raises(NotTracked):
        a_compile.register(outcome("p"), store=going)
    back = Store(a_compile.folder)
    back.connect()
    a_compile.register(outcome("p"), store=back)
    assert tracked.aliases() == {"challenger": "1"}


def test_a_server_that_goes_when_it_is_asked_for_the_champion_is_not_tracked(tracked: Mlflow) -> None:
    class Gone:
        def __init__(self, client: Any) -> None:
            self.client = client

        def __getattr__(self, name: str) -> Any:
            return getattr(self.client, name)

        def get_model_version_by_alias(self, name: str, alias: str) -> Any:
            raise MlflowException("API request failed")

    a_compile = Compile("c")
    going = Store(a_compile.folder)
    going.connect()
    going.client = Gone(going.client)
    with pytest.raises(NotTracked):
        a_compile.register(outcome("p", proved=True), store=going)


def test_a_champion_of_another_class_is_not_compared_with(
    said: Said, tracked: Mlflow, caplog: pytest.LogCaptureFixture
) -> None:
    Compile("by hand").register(outcome("p", proved=True, kind="Mine"))
    assert champion_for(ReferenceLevelFeedback(), "refed", Path("c")) is None
    said(caplog.text)
    assert champion_for(type("Mine", (ReferenceLevelFeedback,), {})(), "refed", Path("c")) is not None


# --- by whole compiles


@pytest.mark.slow
def test_a_proof_on_one_reference_has_no_interval_and_is_tracked_all_the_same(
    said: Said, tracked: Mlflow, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an earlier version proved them."""
    monkeypatch.setattr("refed_dspy.optimizers.compile.refuse_unprovable", lambda *_: None)
    made = compiled_in_the_world("c", **BETTER, test=1, track=True)
    assert made.proof is not None and made.proof.gain.raw.clusters == 1
    said(tracked.version("1").tags["refed.gain"])
    (run,) = tracked.runs("compile")
    assert run.info.status == "FINISHED" and not {"gain_low", "gain_high"} & set(run.data.metrics)
    assert not [r for r in caplog.records if r.name.startswith("refed_dspy.tracking") and r.levelno >= logging.ERROR]


@pytest.mark.slow
def test_the_next_compile_is_compared_with_the_champion(
    said: Said, tracked: Mlflow, caplog: pytest.LogCaptureFixture
) -> None:
    better = tuned(f"Always {Preference(0).answers[0]}.")
    Compile("by hand").register(outcome("p", proved=True), better)
    caplog.clear()
    made = compiled_in_the_world("c")
    assert made.manifest["champion"] == "1" and made.proof is not None and made.proof.champion is not None
    said(Path("c/proof.txt").read_text())
    said(caplog.messages)
    assert champion_is("1", tracked)  # a program that changed nothing proves nothing


@pytest.mark.slow
def test_a_champion_with_other_fields_is_warned_of_and_not_compared_with(
    said: Said, tracked: Mlflow, caplog: pytest.LogCaptureFixture
) -> None:
    Compile("by hand").register(outcome("p", proved=True), tuned(features={"mood": "the mood it is in"}))
    caplog.clear()
    made = compiled_in_the_world("c")
    assert made.manifest["champion"] is None and made.proof is not None and made.proof.champion is None
    said(caplog.messages)
    assert champion_is("1", tracked)


@pytest.mark.slow
def test_an_estimate_is_no_version_and_who_made_the_champion_is_not_compared_with_it(tracked: Mlflow) -> None:
    compiled_in_the_world("c", **BETTER, estimate=True)
    assert not tracked.client.search_registered_models()
    made = compiled_in_the_world("c", **BETTER)
    assert made.proof is not None and made.proof.proved and champion_is("1", tracked)
    again = compiled_in_the_world("c", **BETTER)
    assert again.manifest["champion"] is None and champion_is("1", tracked)


@pytest.mark.slow
def test_a_model_of_somebody_else_under_that_name(
    said: Said, tracked: Mlflow, caplog: pytest.LogCaptureFixture
) -> None:
    """Its champion holds no program: there is a warning, and the compile goes on."""
    client = tracked.client
    run = client.create_run(client.get_experiment_by_name("refed-dspy").experiment_id)
    client.log_text(run.info.run_id, "x", "model/MLmodel")
    client.create_registered_model("refed")
    client.create_model_version("refed", f"runs:/{run.info.run_id}/model", run_id=run.info.run_id)
    client.set_registered_model_alias("refed", "champion", "1")
    caplog.clear()
    made = compiled_in_the_world("c")
    assert made.proof is not None and champion_is("1", tracked)
    said([message.partition(" (")[0] for message in caplog.messages])  # a folder's name follows


@pytest.mark.slow
def test_a_compile_on_what_the_champion_saw_is_refused_before_its_first_call(said: Said, tracked: Mlflow) -> None:
    first = compiled_in_the_world("first", **BETTER, track=True)
    assert first.proved
    with said.by(ConfigError):
        compiled_in_the_world("second", **BETTER, track=True, seed=5)
    assert not list(Path("second").glob("program.json"))
    assert compiled_in_the_world("third", **BETTER, track=True, seed=5, prove=False).proof is None


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


def test_a_tracked_compile_is_registered_by_its_name(tracked: Mlflow) -> None:
    models = {"teacher": fake_lm(Writer()), "metric": full_marks}
    compiled(Answerer(), questions(12), Path("c"), "bootstrap", name="mine", prove=False, **{**models, "track": True})
    assert tracked.aliases("mine") == {"challenger": "1"}


def test_promote_says_in_one_line_what_is_not_there(said: Said, tracked: Mlflow) -> None:
    told = [refused(refed("compile", "promote"))]
    Compile("c").register(outcome("p"))
    told.append(refused(refed("compile", "promote", "nosuch", "--version", "1")))
    told += [refused(refed("compile", "promote", "refed", "--version", word)) for word in ("7", "latest")]
    said(told)
    with pytest.raises(ConfigError):
        promote("refed", "7")
    assert champion_is(None, tracked)
    tracked.use("http://127.0.0.1:9")
    refused(refed("compile", "promote"))


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
