"""The finished works that other plug-ins' tests read, too."""

from tests.plugins.share.conftest import comparison, filtered_run

__all__ = ["comparison", "filtered_run"]
