"""Train and verify neural networks with proven robustness: expressive losses on auto_LiRPA."""

__version__ = "0.1.0"
