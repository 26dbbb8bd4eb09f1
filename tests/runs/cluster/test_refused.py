"""What is refused before Ray is asked for anything."""

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

NOWHERE = "127.0.0.1:9"


@pytest.fixture
def settings(server: SimulatedTeacher, tmp_path: Path) -> dict[str, Any]:
    return {"references": REFERENCES, "size": 4, "teacher": teacher_config(server, 4), "run_dir": tmp_path / "run"}


def test_fewer_references_than_shards(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="41 shards of 40 references; use at most 40"):
        refed_dspy.synthesize(**settings, cluster=NOWHERE, shards=41)
    assert not settings["run_dir"].exists()


def test_a_run_without_a_cluster_does_not_go_on_on_one(settings: dict[str, Any]) -> None:
    refed_dspy.synthesize(**settings)
    with pytest.raises(RunDirError, match="a run without a cluster; continue it without one, or choose another folder"):
        refed_dspy.resume(settings["run_dir"], cluster=NOWHERE, size=8)
    assert refed_dspy.resume(settings["run_dir"], size=8).complete


def test_a_teacher_that_is_an_object(settings: dict[str, Any], server: SimulatedTeacher) -> None:
    import dspy

    settings["teacher"] = dspy.LM("openai/sim-model", api_base=server.base_url, api_key="none")
    with pytest.raises(ConfigError, match="cluster: its teacher was a Python object; workers on other nodes build"):
        refed_dspy.synthesize(**settings, cluster=NOWHERE)
    assert not settings["run_dir"].exists() and server.stats()["requests"] == 0


def test_a_run_that_has_lost_its_coordinators_file(settings: dict[str, Any], server: SimulatedTeacher) -> None:
    folder = settings["run_dir"]
    refed_dspy.synthesize(**{**settings, "size": 1, "run_dir": shard_folder(folder, 1)})
    before = server.stats()["requests"]
    with pytest.raises(RunDirError, match=r"coordinator\.sqlite: is missing, .*; restore it, or choose another folder"):
        refed_dspy.synthesize(**settings, cluster=NOWHERE, shards=2)
    (folder / STATE).touch()
    with pytest.raises(ConfigError, match=r"needs Ray|cluster 127"):
        refed_dspy.synthesize(**settings, cluster=NOWHERE, shards=2)
    assert server.stats()["requests"] == before


def test_no_ray(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"needs Ray; install it with: pip install 'ray\[.*\]<"):
        refed_dspy.synthesize(**settings, cluster="local:2")
    assert not settings["run_dir"].exists()
