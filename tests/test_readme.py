"""The README's example works as printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from expressive_losses.results import read_rows, table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    return re.search(f"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", README, re.DOTALL).group(1)


def test_the_loss_example_is_short_and_trains(tmp_path):
    code = re.search("```python\n(.*?)```", section("example"), re.DOTALL).group(1)
    assert len(code.splitlines()) < 20
    (tmp_path / "my_loss.py").write_text(code)
    line = [
        "--set",
        "plugins=[my_loss]",
        "--method",
        "max_ibp",
        "--alpha",
        "0.3",
        "--epochs",
        "1",
        "--out",
        "run",
        "--quiet",
    ]
    assert " ".join(line[:6]) in README
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *line], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "run" / "model.pt").exists()


def test_the_figures_are_those_of_the_committed_rows():
    files = re.findall(r"`(results/\w+\.jsonl)`", section("results"))
    assert files
    printed = [line for line in section("results").splitlines() if line.startswith("|")]
    assert printed == table([row for name in files for row in read_rows(ROOT / name)]).splitlines()


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.jsonl")), ids=lambda p: p.name)
def test_committed_rows_say_where_they_come_from(path):
    for row in read_rows(path):
        assert row["command"].startswith("python ")
        assert {"device", "time"} <= set(row) or {"hardware", "date"} <= set(row)


def test_every_file_of_rows_is_explained():
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    missing = [path.name for path in (ROOT / "results").glob("*.jsonl") if f"| `{path.name}` |" not in text]
    assert not missing


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
