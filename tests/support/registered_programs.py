"""Programs registered in MLflow as if a compile had made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import Result

from refed_dspy import ReferenceLevelFeedback
from refed_dspy.programs.saved import MANIFEST, program_state
from refed_dspy.signatures import DEFAULT_FEATURES
from refed_dspy.tracking.registry import register
from refed_dspy.tracking.store import Store
from tests.support.mlflow_stores import Mlflow
from tests.tracking.test_compile import crafted


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
        self, manifest: dict[str, Any], program: ReferenceLevelFeedback | None = None, store: Store | None = None
    ) -> None:
        state = program_state(program or tuned(manifest["candidate"]))
        state[MANIFEST] |= manifest | {"run_id": self.run_id}
        (self.folder / "program.json").write_text(json.dumps(state))
        register(store or self.store, self.run_id, "refed", manifest)


def champion_is(version: str | None, store: Mlflow) -> bool:
    return store.aliases().get("champion") == version


def refused(result: Result) -> str:
    """The only line of a refusal."""
    assert result.exit_code == 2 and result.stderr.startswith("refed: "), result.output
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.output
    return result.stderr
