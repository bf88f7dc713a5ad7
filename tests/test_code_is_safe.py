"""Nothing that the packages read is run: no pickle, no YAML that makes objects, no text taken for code."""

import ast
from pathlib import Path

import numcodecs.registry
import pytest
import zarr.registry
from conftest import REPOSITORY

PACKAGES = ("data_specs", "extraction", "training")
MODULES = sorted(file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py"))
FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill", "cloudpickle", "marshal", "shelve", "joblib.load",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader", "yaml.FullLoader",
    "yaml.UnsafeLoader", "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pandas.read_pickle",
    "torch.jit.load", "torch.package", "numpy.lib.format.read_array", "tempfile.mktemp",
}  # fmt: skip
"""By what they are called in full; names that a module imports are followed to where they come from."""


def calls(file: Path):
    """(line, full name, keywords) of every call, and of every name of a module that is used."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package = alias.name.split(".")[0]
                imported[alias.asname or package] = alias.name if alias.asname else package
        elif isinstance(node, ast.ImportFrom):
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}

    def full(node):
        if isinstance(node, ast.Name):
            return imported.get(node.id, node.id)
        return f"{full(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"

    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, full(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        elif isinstance(node, ast.Attribute):
            yield node.lineno, full(node), None


def dangers(file: Path):
    found = []
    for line, name, keywords in calls(file):
        if any(name == bad or name.startswith(f"{bad}.") for bad in FORBIDDEN) and (
            keywords is not None or "." in name
        ):
            found.append((line, name))
        elif keywords is not None:
            if name == "torch.load" and keywords.get("weights_only") != "True":
                found.append((line, "torch.load without weights_only=True"))
            if keywords.get("allow_pickle", "False") != "False" or (
                name == "numpy.load" and keywords.get("allow_pickle") != "False"
            ):
                found.append((line, f"{name} without allow_pickle=False"))
            if keywords.get("shell", "False") != "False":
                found.append((line, f"{name} with a shell"))
    return found


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_no_module_runs_what_it_reads(file):
    assert dangers(file) == []


@pytest.mark.parametrize(
    "text",
    ["import pickle\npickle.load(f)", "from pickle import loads as x\nx(b)", "import pickle as p\np.Unpickler(f)",
     "import numpy as np\nnp.load(f)", "import numpy as np\nnp.load(f, allow_pickle=True)", "eval('1')", "exec(text)",
     "import torch\ntorch.load(f)", "import torch\ntorch.load(f, weights_only=False)", "import os\nos.system(a)",
     "import yaml\nyaml.load(f, Loader=yaml.SafeLoader)", "import yaml\nx = yaml.FullLoader",
     "import subprocess\nsubprocess.run(a, shell=True)", "from yaml import unsafe_load\nunsafe_load(f)"],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(tmp_path, text):
    (tmp_path / "module.py").write_text(text)
    assert dangers(tmp_path / "module.py")


def test_one_module_unpickles_and_it_says_what_may_be_named():
    naming = [f.name for f in MODULES if "pickle._Unpickler" in f.read_text(encoding="utf-8")]
    assert naming == ["array_pickles.py"]  # tests/test_array_pickles.py: nothing that a pickle names is run


def test_zarr_has_no_codec_that_unpickles():
    """numcodecs has one; zarr v3 does not know it, and stores are held to bytes, blosc and crc32c in any case."""
    assert "pickle" in numcodecs.registry.codec_registry
    for name in ("pickle", "numcodecs.pickle", "json2", "numcodecs.json2"):
        with pytest.raises(KeyError):
            zarr.registry.get_codec_class(name)
