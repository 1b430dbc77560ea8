"""The public names, and what importing them costs."""

from importlib import import_module

import pytest
from processes import python

PACKAGES = ("unspoken.agents", "unspoken.channels")


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_can_be_imported(package: str) -> None:
    """Every name leads to a thing, and `dir` shows exactly these names."""
    module = import_module(package)
    assert all(getattr(module, name) is not None for name in module.__all__)
    assert dir(module) == module.__all__


@pytest.mark.parametrize("package", PACKAGES)
def test_another_name_is_an_attribute_error(package: str) -> None:
    """A lazy module still refuses what it does not have."""
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = import_module(package).Nothing


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_no_torch(package: str) -> None:
    """The packages themselves are light, for commands that need no model."""
    heavy = "{name.split('.')[0] for name in sys.modules}"
    code = f"import sys, {package}\nprint(sorted({heavy} & {{'torch', 'transformers', 'numpy'}}))"
    assert python(code).stdout.strip() == "[]"
