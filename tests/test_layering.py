"""The one-way street: both halves import the contract, never each other; Ray is in one module."""

import ast

import pytest
from conftest import REPOSITORY

PACKAGES = {"data_specs", "extraction", "training"}
MAY_IMPORT = {"data_specs": set(), "extraction": {"data_specs"}, "training": {"data_specs"}}


def modules():
    return sorted(f for p in PACKAGES for f in (REPOSITORY / p).rglob("*.py"))


def imports(file):
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            found.add(str(node.module).split(".")[0])
    return found


@pytest.mark.parametrize("file", modules(), ids=lambda f: str(f.relative_to(REPOSITORY)))
def test_imports_go_one_way(file):
    package = file.relative_to(REPOSITORY).parts[0]
    assert imports(file) & PACKAGES <= MAY_IMPORT[package] | {package}


def test_ray_is_imported_in_one_module():
    assert [f.name for f in modules() if "ray" in imports(f)] == ["ray_runner.py"]


def test_modules_have_one_subject():
    assert [f for f in modules() if len(f.read_text(encoding="utf-8").splitlines()) > 400] == []
    assert [f for f in modules() if f.stem in {"utils", "util", "helpers", "misc", "common"}] == []
