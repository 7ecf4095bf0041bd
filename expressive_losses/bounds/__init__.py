"""Sound bounds on network outputs. This package alone imports auto_LiRPA."""

from expressive_losses.bounds.agreement import refuse_disagreement
from expressive_losses.bounds.network import TRAINING_METHODS, BoundedNetwork, BoundMethod
from expressive_losses.bounds.statistics import (
    BatchStatistics,
    record_statistics,
    refresh_population_statistics,
    use_statistics,
)

__all__ = [
    "TRAINING_METHODS",
    "BatchStatistics",
    "BoundMethod",
    "BoundedNetwork",
    "record_statistics",
    "refuse_disagreement",
    "refresh_population_statistics",
    "use_statistics",
]
