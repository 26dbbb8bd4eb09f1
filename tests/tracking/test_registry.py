"""The registered model: what becomes a version, which is challenger and champion, and how a version is used."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from typer.testing import CliRunner, Result

from benchmarks.preference import Preference
from refed_dspy import ReferenceLevelFeedback, synthesize
from refed_dspy.cli.main import app
from refed_dspy.errors import ConfigError
from refed_dspy.programs.load import open_program
from refed_dspy.programs.saved import MANIFEST, program_digests, program_state
from refed_dspy.signatures import DEFAULT_FEATURES
from refed_dspy.tracking.registry import champion, promote, register
from refed_dspy.tracking.store import NotTracked, Store
from tests.support import mlflow_stores
from tests.support.mlflow_stores import Mlflow, free_port
from tests.support.scripted_engine import Writer, fake_lm, references
from tests.tracking.test_compile import BETTER, compiled_in_the_world, compiled_over_http, crafted

mlflow_template, tracked = mlflow_stores.mlflow_template, mlflow_stores.tracked


def tuned(text: str = "Be brief.", features: dict[str, str] | None = None) -> ReferenceLevelFeedback:
    return ReferenceLevelFeedback(features or DEFAULT_FEATURES, guidance={"response_generation": text})


def outcome(candidate: str, proved: bool = False, against: str | None = None, **facts: Any) -> dict[str, Any]:
    """What a compile's manifest says of its outcome."""
    return {"candidate": candidate, "baseline": "0", "proof": {"proved": proved}, "champion": against, **facts}


class Compile:
    """A compile's folder, with no more in it than registering needs."""

    def __init__(self, name: str) -> None:
        self.folder = Path(name).absolute()
        crafted(self.folder)
        self.store = Store(self.folder)
        self.store.connect()
        self.run_id = self.store.run("compile", name, {})

    def register(
        self, said: dict[str, Any], program: ReferenceLevelFeedback | None = None, store: Store | None = None
    ) -> None:
        state = program_state(program or tuned(said["candidate"]))
        state[MANIFEST] |= said | {"run_id": self.run_id}
        (self.folder / "program.json").write_text(json.dumps(state))
        register(store or self.store, self.run_id, "refed", said)


def champion_is(version: str | None, store: Mlflow) -> bool:
    return store.aliases().get("champion") == version


def refed(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(result: Result, *told: str) -> None:
    assert result.exit_code == 2 and result.stderr.startswith("refed: "), result.output
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.output
    for text in told:
        assert text in result.stderr


# --- versions and aliases


@pytest.mark.slow
def test_every_program_is_a_version_and_the_newest_the_challenger(tracked: Mlflow) -> None:
    for number in (1, 2):
        Compile(f"c{number}").register(outcome(f"p{number}"))
        assert tracked.aliases() == {"challenger": str(number)}
        made = tracked.version(str(number))
        assert made.tags["refed.digest"] == f"p{number}" and made.tags["refed.proved"] == "False"
    assert tracked.version("2").run_id != tracked.version("1").run_id


@pytest.mark.slow
def test_the_same_program_again_is_no_version_more(tracked: Mlflow) -> None:
    one = Compile("c")
    one.register(outcome("p"))
    one.register(outcome("p"))
    assert len(tracked.client.search_model_versions("name='refed'")) == 1


@pytest.mark.slow
def test_only_a_proved_one_is_champion(tracked: Mlflow) -> None:
    Compile("one").register(outcome("p1"))
    assert champion_is(None, tracked)
    Compile("two").register(outcome("p2", proved=True))
    assert champion_is("2", tracked)
    Compile("three").register({**outcome("p3"), "proof": None})
    assert champion_is("2", tracked) and tracked.aliases()["challenger"] == "3"
    Compile("four").register(outcome("p4", proved=True, against="2"))
    assert champion_is("4", tracked) and tracked.version("4").tags["refed.proved"] == "True"


@pytest.mark.slow
@pytest.mark.parametrize("against", [None, "1"])
def test_not_promoted_where_the_champion_changed_meanwhile(
    tracked: Mlflow, against: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    Compile("one").register(outcome("p1", proved=True))
    Compile("two").register(outcome("p2", proved=True, against="1"))
    Compile("three").register(outcome("p3", proved=True, against=against))
    assert champion_is("2", tracked) and tracked.aliases()["challenger"] == "3"
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == 1 and "version 3 is not promoted" in said[0] and "version 2" in said[0]


def test_what_a_person_made_champion_is_not_unmade_by_telling_again(tracked: Mlflow) -> None:
    Compile("one").register(outcome("p1", proved=True))
    two = Compile("two")
    two.register(outcome("p2", proved=True, against="1"))
    promote("refed", "1")
    two.register(outcome("p2", proved=True, against="1"))
    assert champion_is("1", tracked)


def test_another_program_of_the_same_compile_is_another_version_and_the_first_stays_as_it_was(tracked: Mlflow) -> None:
    """A compile that went on after a cap."""
    one = Compile("c")
    one.register(outcome("first"))
    before = open_program("models:/refed/1")
    one.register(outcome("second", proved=True))
    assert tracked.aliases() == {"challenger": "2", "champion": "2"}
    assert program_digests(open_program("models:/refed/1")) == program_digests(before)
    assert tracked.version("2").tags["refed.digest"] == "second"
    assert program_digests(open_program("models:/refed@champion")) == program_digests(tuned("second"))


def test_a_proof_that_comes_later_is_told_of_the_version(tracked: Mlflow) -> None:
    one = Compile("c")
    one.register({**outcome("p"), "proof": None})
    one.register(outcome("p", proved=True))
    assert champion_is("1", tracked)
    assert tracked.version("1").tags["refed.proved"] == "True"


def test_a_server_that_goes_between_version_and_alias(tracked: Mlflow) -> None:
    class Going(Store):
        def told(self, what: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(what, "__name__", "") == "set_registered_model_alias":
                raise NotTracked("gone")
            return super().told(what, *args, **kwargs)

    one = Compile("c")
    going = Going(one.folder)
    going.connect()
    with pytest.raises(NotTracked):
        one.register(outcome("p"), store=going)
    back = Store(one.folder)
    back.connect()
    one.register(outcome("p"), store=back)
    assert tracked.aliases() == {"challenger": "1"}


def test_a_server_that_goes_when_it_is_asked_for_the_champion_is_not_tracked(tracked: Mlflow) -> None:
    class Gone:
        def __init__(self, client: Any) -> None:
            self.client = client

        def __getattr__(self, name: str) -> Any:
            return getattr(self.client, name)

        def get_model_version_by_alias(self, name: str, alias: str) -> Any:
            raise MlflowException("API request failed")

    class Going(Store):
        @property
        def client(self) -> Any:
            return Gone(super().client)

    one = Compile("c")
    going = Going(one.folder)
    going.connect()
    with pytest.raises(NotTracked):
        one.register(outcome("p", proved=True), store=going)


# --- by whole compiles


@pytest.mark.slow
def test_an_estimate_is_no_version(tracked: Mlflow) -> None:
    compiled_in_the_world("c", estimate_only=True)
    assert not tracked.client.search_registered_models()


@pytest.mark.slow
def test_an_estimate_of_a_compile_that_is_done_leaves_its_program_alone(tracked: Mlflow) -> None:
    assert compiled_in_the_world("c", **BETTER).changed
    before = Path("c/program.json").read_bytes()
    compiled_in_the_world("c", **BETTER, estimate_only=True)
    assert Path("c/program.json").read_bytes() == before


@pytest.mark.slow
def test_the_next_compile_is_compared_with_the_champion(tracked: Mlflow, caplog: pytest.LogCaptureFixture) -> None:
    better = tuned(f"Always {Preference(0).answers[0]}.")
    Compile("by hand").register(outcome("p", proved=True), better)
    made = compiled_in_the_world("c")
    assert made.manifest["champion"] == "1" and made.proof is not None and made.proof.champion is not None
    assert "gain over the champion" in Path("c/proof.txt").read_text()
    assert champion_is("1", tracked)  # a program that changed nothing proves nothing
    assert "not compared" not in caplog.text


@pytest.mark.slow
def test_a_champion_with_other_fields_is_warned_of_and_not_compared_with(
    tracked: Mlflow, caplog: pytest.LogCaptureFixture
) -> None:
    Compile("by hand").register(outcome("p", proved=True), tuned(features={"mood": "the mood it is in"}))
    made = compiled_in_the_world("c")
    assert made.manifest["champion"] is None and made.proof is not None and made.proof.champion is None
    said = [r.getMessage() for r in caplog.records if "not compared" in r.getMessage()]
    assert len(said) == 1 and "champion of refed" in said[0] and "\n" not in said[0]
    assert champion_is("1", tracked)


@pytest.mark.slow
def test_a_compile_that_made_the_champion_is_not_compared_with_itself(tracked: Mlflow) -> None:
    made = compiled_in_the_world("c", **BETTER)
    assert made.proof is not None and made.proof.proved and champion_is("1", tracked)
    again = compiled_in_the_world("c", **BETTER)
    assert again.manifest["champion"] is None and champion_is("1", tracked)


@pytest.mark.slow
def test_a_model_of_somebody_else_under_that_name(tracked: Mlflow, caplog: pytest.LogCaptureFixture) -> None:
    """Its champion holds no program: that is told, and the compile goes on."""
    client = tracked.client
    run = client.create_run(client.get_experiment_by_name("refed-dspy").experiment_id)
    client.log_text(run.info.run_id, "x", "model/MLmodel")
    client.create_registered_model("refed")
    client.create_model_version("refed", f"runs:/{run.info.run_id}/model", run_id=run.info.run_id)
    client.set_registered_model_alias("refed", "champion", "1")
    made = compiled_in_the_world("c")
    assert made.proof is not None and champion_is("1", tracked)
    assert "Traceback" not in caplog.text and "nothing will be promoted" in caplog.text


# --- promoting by hand


def test_promote_makes_the_challenger_champion(tracked: Mlflow) -> None:
    for number in (1, 2, 3):
        Compile(f"c{number}").register(outcome(f"p{number}"))
    assert promote("refed") == "3" and champion_is("3", tracked)
    assert promote("refed", "1") == "1" and champion_is("1", tracked)
    said = refed("promote", "refed", "--version", 2)
    assert said.exit_code == 0 and said.output == "refed version 2 is champion: models:/refed@champion\n"
    assert champion_is("2", tracked)
    assert refed("promote").exit_code == 0 and champion_is("3", tracked)


def test_promote_says_in_one_line_what_is_not_there(tracked: Mlflow) -> None:
    refused(refed("promote"), "refed has no challenger", "--version")
    refused(refed("promote", "nosuch", "--version", "1"), "nosuch")
    Compile("c").register(outcome("p"))
    refused(refed("promote", "refed", "--version", "7"), "version=7")
    refused(refed("promote", "refed", "--version", "latest"))
    with pytest.raises(ConfigError):
        promote("refed", "7")
    assert champion_is(None, tracked)
    tracked.use(f"http://127.0.0.1:{free_port()}")
    refused(refed("promote"), "MLflow")


# --- a version in use


def armed(version: str, store: Mlflow, proof: Path) -> None:
    """Put a pickle that leaves `proof` when it is loaded beside a version's program, under every name there is."""

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (proof,))

    with pytest.raises(FileNotFoundError):
        proof.stat()
    where = Path(store.client.get_model_version_download_uri("refed", version).removeprefix("file://"))
    if not where.is_dir():  # runs:/ID/PATH
        run, _, rest = str(where).removeprefix("runs:/").partition("/")
        where = store.home / "artifacts" / run / "artifacts" / rest
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
        opened = open_program(address)
        assert program_digests(opened) == program_digests(program)
        assert opened.source["address"] == address and opened.source["version"] == "1"
    found = champion("refed")
    assert found is not None and found.version == "1"
    run = synthesize("models:/refed@champion", references(2), size=2, teacher=fake_lm(Writer()), run_dir="run")
    assert run.complete and not proof.exists()


def test_a_version_has_the_features_that_it_was_compiled_with(tracked: Mlflow) -> None:
    features = {"mood": "the mood it is in", "length": "how long it is"}
    said = outcome("p", features=features, instructions_per_feature=4, models={"teacher": {"model": "sim/tuned-with"}})
    one = Compile("c")
    one.register(said, tuned(features=features))
    opened = open_program("models:/refed@challenger")
    assert opened.features == features and opened.instructions_per_feature == 4
    assert opened.source["teacher"] == "sim/tuned-with" and opened.source["run_id"] == one.run_id
    assert open_program("models:/refed@challenger", features, 7).instructions_per_feature == 7
    with pytest.raises(ConfigError, match="other fields"):
        open_program("models:/refed@challenger", {"topic": "what it is about", "mood": "the mood"})


def test_another_teacher_than_it_was_tuned_with_is_warned_of(tracked: Mlflow, caplog: pytest.LogCaptureFixture) -> None:
    said = outcome("p", models={"teacher": {"model": "sim/tuned-with"}})
    Compile("c").register(said)
    synthesize("models:/refed@challenger", references(2), size=1, teacher=fake_lm(Writer()), run_dir="run")
    assert "tuned with sim/tuned-with" in caplog.text


def test_a_program_s_address_is_not_asked_for_for_minutes(tracked: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES

    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with pytest.raises(ConfigError):
        open_program("models:/nosuch/1")
    assert MLFLOW_HTTP_REQUEST_MAX_RETRIES.get() <= 2


@pytest.mark.parametrize("address", ["models:/refed@champion", "models:/refed/9", "models:/nosuch/1", "models:/refed"])
def test_an_address_of_nothing_is_one_line(tracked: Mlflow, address: str) -> None:
    Compile("c").register(outcome("p"))
    with pytest.raises(ConfigError) as told:
        open_program(address)
    assert address in str(told.value) and "\n" not in str(told.value)


@pytest.mark.slow
def test_a_capped_compile_promotes_what_it_comes_to_in_the_end(tracked: Mlflow, server: Any) -> None:
    first = compiled_over_http("c", server, max_calls=60)
    assert first.proof is None and champion_is(None, tracked)
    whole = compiled_over_http("c", server, max_calls=5_000)
    newest = tracked.version(tracked.aliases()["challenger"])
    assert newest.tags["refed.digest"] == whole.manifest["candidate"]
    opened = open_program("models:/refed@challenger")
    assert program_digests(opened) == program_digests(whole.program)
