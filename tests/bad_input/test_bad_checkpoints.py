"""verify.py: checkpoints."""

from __future__ import annotations

import pytest

from expressive_losses.cli import verify_main

CASES = [
    *(
        (f"--model models/{name}.pt --dataset digits --bound ibp", message)
        for name, message in {
            "foreign": "no 'format'",
            "newer": "newer than this package",
            "text_format": "format",
            "with_code": "could run code",
            "nan": "not finite",
            "misfit": "do not fit",
            "no_weights": "weights: Field required",
            "no_config": "config: Field required",
            "no_shape": "shape: Field required",
            "weights_list": "weights",
            "weights_numbers": "weights",
            "missing_weight": "do not fit",
            "extra_weight": "do not fit",
            "unknown_model": "cnn_titanic",
            "model_text": "model",
            "other_classes": "do not fit",
            "classes_text": "classes",
            "shape_text": "shape",
            "shape_flat": "shape",
            "mean_text": "mean",
            "std_zero": "std",
            "std_nan": "std",
            "mean_nan": "mean",
            "mean_three": "mean",
            "config_text": "config",
            "config_eps": "did you mean 8/255",
            "config_typo": "did you mean 'training'",
            "imports": "--trust os:system",
            "imports_name": "--trust os:system",
            "plugins": "--trust antigravity",
            "half": "the weights are float16",
            "empty": "not a checkpoint",
            "text": "not a checkpoint",
            "cut": "cut short",
            "flipped": "damaged",
            "zip": "not a checkpoint",
            "climbs": "not a checkpoint",
        }.items()
    ),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), CASES, ids=[line or "nothing" for line, _ in CASES])
def test_checkpoints(refuses_run, line, message):
    refuses_run(verify_main, line, message)
