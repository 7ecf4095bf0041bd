"""What a figure was computed with and on."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from expressive_losses import __version__

_PACKAGES = ("torch", "torchvision", "auto_LiRPA", "numpy", "pydantic", "pyyaml")


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a reader needs to repeat a figure: time, command, and :func:`software_and_device`."""
    return {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": sys.argv, **software_and_device(device)}


def software_and_device(device: torch.device | str) -> dict[str, Any]:
    """Return versions, the commit of this package (``None`` outside a git checkout), platform, hardware."""
    device = torch.device(device)
    return {
        "expressive_losses": __version__,
        "git": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        **{package: _version(package) for package in _PACKAGES},
    }


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _git_commit() -> str | None:
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x{len(names)}" if names else platform.machine()
