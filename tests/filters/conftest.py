from __future__ import annotations

import pytest

from refed_dspy.filters.language import Language


@pytest.fixture(scope="session")
def english() -> Language:
    """Half a second to load."""
    return Language()
