"""The architecture, enforced: a part imports only from the layers below it, and bounds/ alone imports auto_LiRPA."""

import ast
import configparser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PACKAGE = Path(__file__).parent.parent / "expressive_losses"

#: From the bottom up. Parts of one layer do not import each other.
LAYERS = (
    ("errors",),
    ("registry", "types", "locking", "environment", "allocator", "distributed", "capture", "precision"),
    ("config", "schedules", "optimizers"),
    ("bounds", "attacks", "losses", "models", "data"),
    ("regularizers", "initialize", "averaging", "verify"),
    ("step", "evaluate", "checkpoint"),
    ("run", "progress", "plots", "updates"),
    ("trainer", "results"),
    ("experiment",),
    ("cli",),
    ("experiments",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Absolute names of everything that a file imports, at any depth of the code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_part_has_a_layer():
    parts = {part_of(path) for path in FILES} - {"__init__"}
    assert parts == set(LEVEL), parts ^ set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    part = part_of(path)
    for name in imported(path):
        words = name.split(".")
        if words[0] != "expressive_losses" or len(words) == 1:
            continue
        other = words[1]
        if other == part or other not in LEVEL:
            continue
        assert part == "__init__" or LEVEL[other] < LEVEL[part], f"{part} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_bounds_imports_auto_lirpa(path):
    if part_of(path) != "bounds":
        assert not [name for name in imported(path) if name.split(".")[0] == "auto_LiRPA"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_evaluates_text_or_unpickles(path):
    """No eval, exec, shell, pickle.load, yaml.load, or torch.load without weights_only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in (
            "eval",
            "exec",
            "compile",
            "os.system",
            "os.popen",
            "yaml.load",
            "pickle.load",
            "pickle.loads",
        )
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert keywords.get("shell", "False") == "False"
        if called.endswith("torch.load"):
            assert keywords.get("weights_only") == "True"


def test_every_dependency_has_an_upper_bound():
    """A release that breaks us must not be installed by whoever asks for today's."""
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg")
    texts = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    for line in "\n".join(texts).split("\n"):
        assert not line.strip() or "<" in line, line


def test_what_is_tested_is_what_is_declared():
    """Each pinned version of requirements/ is one that setup.cfg allows."""
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg")
    texts = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    declared = [Requirement(line) for line in "\n".join(texts).split("\n") if line and not line.startswith("#")]
    allowed = {one.name.lower(): one.specifier for one in declared}
    for file in ("base.txt", "test.txt"):
        lines = (PACKAGE.parent / "requirements" / file).read_text().splitlines()
        for line in (line.partition("#")[0].strip() for line in lines):
            pinned = Requirement(line) if line else None
            if pinned and pinned.name.lower() in allowed:
                (exact,) = pinned.specifier
                assert allowed[pinned.name.lower()].contains(exact.version), line


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_class_variables_say_their_type(path):
    """On Python 3.10 pydantic cannot read a ``ClassVar`` without one: the package would not even be imported."""
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "ClassVar"), node.lineno
