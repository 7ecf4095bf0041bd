"""train.py: config files."""

from __future__ import annotations

import pytest

from expressive_losses.cli import train_main

CASES = [
    ("--config configs/missing.yaml", "cannot read the config"),
    ("--config configs", "cannot read the config"),
    ("--config configs/broken.yaml", "not valid YAML"),
    ("--config configs/tabs.yaml", "not valid YAML"),
    ("--config configs/binary.yaml", "not valid YAML"),
    ("--config configs/code.yaml", "not valid YAML"),
    ("--config configs/unhashable_key.yaml", "not valid YAML"),
    ("--config configs/twice.yaml", "'eps' is there twice"),
    ("--config configs/twice_inside.yaml", "'target' is there twice"),
    ("--config configs/list.yaml", "expected a mapping"),
    ("--config configs/text.yaml", "expected a mapping"),
    ("--config configs/circle_a.yaml", "circle"),
    ("--config configs/self.yaml", "circle"),
    ("--config configs/orphan.yaml", "nowhere.yaml"),
    ("--config configs/extends_list.yaml", "expected a path"),
    ("--config configs/typo.yaml", "did you mean 'training'"),
    ("--config configs/nested_typo.yaml", "did you mean 'weight'"),
    ("--config configs/null_section.yaml", "training"),
    ("--config configs/list_section.yaml", "eps"),
    ("--config configs/number_as_key.yaml", "1"),
    ("--config configs/bomb.yaml", "configs/bomb.yaml"),
    ("--config configs/loop.yaml", "configs/loop.yaml"),
    ("--config configs/deep.yaml", "configs/deep.yaml"),
    ("--config configs/text_for_number.yaml", "lr"),
    ("--config configs/bool_for_number.yaml", "epochs"),
    ("--config configs/fraction_for_int.yaml", "epochs"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), CASES, ids=[line for line, _ in CASES])
def test_configs(refuses_run, line, message):
    refuses_run(train_main, line, message)
