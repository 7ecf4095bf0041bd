"""Data sets that torchvision knows how to fetch and to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expressive_losses.data.base import Dataset
from expressive_losses.data.torchvision_compat import load_torchvision
from expressive_losses.errors import UserError

DOWNLOAD_HINT = ", or let train.py fetch it: --set data.download=true"


def torchvision_dataset(dataset: Dataset, class_name: str, root: Path, download: bool, **arguments: Any) -> Any:
    """Build ``torchvision.datasets.<class_name>``, with its failures as one-line errors.

    Args:
        dataset: the plug-in, for messages.
        class_name: in torchvision.datasets.
        root: the data root.
        download: fetch what is missing; archives already there are only unpacked.
        arguments: of the torchvision class.

    Raises:
        UserError: the files are missing or damaged, or fetching them failed.
    """
    load_torchvision()
    from torchvision import datasets  # only now: its import needs the line above

    try:
        return getattr(datasets, class_name)(str(root), download=download, **arguments)
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        if download:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"data set '{dataset.name}': fetching it failed ({reason}); {dataset.source}") from error
        raise UserError(
            f"data set '{dataset.name}': not found or damaged under {root}; {dataset.source}{DOWNLOAD_HINT}"
        ) from error
