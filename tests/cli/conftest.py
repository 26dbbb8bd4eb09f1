from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.scripted_engine import references


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a file of references."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("REFED_") and name != "REFED_CACHE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("REFED_TRACK", "false")
    (tmp_path / "references.jsonl").write_text("".join(json.dumps(r) + "\n" for r in references(12)))
    return tmp_path
