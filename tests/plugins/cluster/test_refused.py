"""What is refused before Ray is asked for anything, on a cluster and without one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.runs import REFERENCES, teacher_config
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ConfigError, RunDirError
from refed_dspy.plugins.cluster.drive import STATE
from refed_dspy.plugins.cluster.shards import shard_folder
from tests.support.said import Said

NOWHERE = "127.0.0.1:9"


@pytest.fixture
def settings(server: SimulatedTeacher, tmp_path: Path) -> dict[str, Any]:
    return {"references": REFERENCES, "size": 2, "teacher": teacher_config(server, 4), "run_dir": tmp_path / "run"}


def test_fewer_references_than_shards(said: Said, settings: dict[str, Any]) -> None:
    with said.by(ConfigError):
        refed_dspy.synthesize(**settings, cluster=NOWHERE, shards=41)
    assert not settings["run_dir"].exists()


def test_a_run_without_a_cluster_does_not_go_on_on_one(said: Said, settings: dict[str, Any]) -> None:
    refed_dspy.synthesize(**settings)
    with said.by(RunDirError):
        refed_dspy.resume(settings["run_dir"], cluster=NOWHERE, size=3)
    assert refed_dspy.resume(settings["run_dir"], size=3).complete


@pytest.mark.parametrize("more", [{"api_key": "sk-own-0123456789abcdef"}, {"extra_headers": {"x": "y"}}])
def test_a_teacher_that_is_an_object(
    said: Said, settings: dict[str, Any], server: SimulatedTeacher, more: dict[str, Any]
) -> None:
    import dspy

    settings["teacher"] = dspy.LM("openai/sim-model", api_base=server.base_url, **more)
    with said.by(ConfigError):
        refed_dspy.synthesize(**settings, cluster=NOWHERE)
    assert not settings["run_dir"].exists() and server.stats()["requests"] == 0


def test_a_run_that_has_lost_its_coordinators_file(
    said: Said, settings: dict[str, Any], server: SimulatedTeacher
) -> None:
    folder = settings["run_dir"]
    refed_dspy.synthesize(**{**settings, "size": 1, "run_dir": shard_folder(folder, 1)})
    before = server.stats()["requests"]
    with said.by(RunDirError):
        refed_dspy.synthesize(**settings, cluster=NOWHERE, shards=2)
    (folder / STATE).touch()
    with said.by(ConfigError):
        refed_dspy.synthesize(**settings, cluster=NOWHERE, shards=2)
    assert server.stats()["requests"] == before


def test_no_ray_and_an_estimate_which_is_made_in_one_process(
    said: Said, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for asked in (refed_dspy.synthesize, refed_dspy.estimate):
        with said.by(ConfigError):
            asked(**settings, cluster="local:2")
    assert not settings["run_dir"].exists()


def test_a_run_on_a_cluster_goes_on_with_the_cluster(said: Said, settings: dict[str, Any]) -> None:
    (settings["run_dir"] / "shards").mkdir(parents=True)
    with said.by(RunDirError):
        refed_dspy.synthesize(**settings)
    assert not (settings["run_dir"] / "ledger.sqlite").exists()
