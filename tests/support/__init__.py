"""What several tests use: fake teachers, servers, runs that were made once."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder of the repository."""
