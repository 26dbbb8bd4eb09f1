"""Environments whose package is a stand-in: they are made in a moment, and nothing is installed."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from refed_dspy.plugins.evaluate.program import Package


def toy_environment(folder: Path, package: Package, files: Mapping[str, str]) -> Path:
    """An environment in `folder` with `files` for the package. It finds this one's libraries, too, for YAML say."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    metadata = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
    named = f"{package.module}-{package.version}.dist-info/METADATA"
    for name, text in {**files, named: metadata, "libraries.pth": sysconfig.get_paths()["purelib"]}.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text, "utf-8")
    return folder
