"""The one-way street: both halves import the contract, never each other; Ray is in one module."""

import ast

import pytest
from conftest import REPOSITORY

PACKAGES = {"data_specs", "extraction", "training"}
MAY_IMPORT = {"data_specs": set(), "extraction": {"data_specs"}, "training": {"data_specs"}}


def modules():
    return sorted(f for p in PACKAGES for f in (REPOSITORY / p).rglob("*.py"))


def imported_modules(file):
    """Full names of what a module imports, names that are taken from a package among them."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def imports(file):
    return {name.split(".")[0] for name in imported_modules(file)}


@pytest.mark.parametrize("file", modules(), ids=lambda f: str(f.relative_to(REPOSITORY)))
def test_imports_go_one_way(file):
    package = file.relative_to(REPOSITORY).parts[0]
    assert imports(file) & PACKAGES <= MAY_IMPORT[package] | {package}


def imported_by(*rooms):
    """Names of modules that import something of these rooms of training, as paths."""
    return {
        str(file.relative_to(REPOSITORY / "training"))
        for file in (REPOSITORY / "training").rglob("*.py")
        if any(f"{name}.".startswith(f"training.{room}.") for name in imported_modules(file) for room in rooms)
    }


def test_pretraining_does_not_know_fine_tuning():
    users = imported_by("finetuning")
    assert users  # it is found where it is
    assert [name for name in users if not name.startswith("finetuning/")] == []


def test_fine_tuning_does_not_know_masks_and_targets():
    users = imported_by("pretrain", "assembly", "masked_prediction", "targets", "losses", "reading.masks")
    assert "pretrain.py" in users
    assert [name for name in users if name.startswith("finetuning/")] == []


def test_reading_does_not_know_models():
    users = imported_by("model", "task", "step", "loop", "optim", "checkpoint")
    assert "loop.py" in users
    assert [name for name in users if name.startswith("reading/")] == []


def test_ray_is_imported_in_one_module():
    assert [f.name for f in modules() if "ray" in imports(f)] == ["ray_runner.py"]


def test_modules_have_one_subject():
    assert [f for f in modules() if len(f.read_text(encoding="utf-8").splitlines()) > 400] == []
    assert [f for f in modules() if f.stem in {"utils", "util", "helpers", "misc", "common"}] == []
