"""The public names, and what importing them costs."""

from importlib import import_module

import pytest
from processes import python

from unspoken.channels import errors

PACKAGES = ("unspoken.agents", "unspoken.agents.testing", "unspoken.channels")
MODULES = (
    *PACKAGES,
    "unspoken.agents.authoring",
    "unspoken.agents.events",
    "unspoken.agents.runs",
    "unspoken.channels.authoring",
)


@pytest.mark.parametrize("name", MODULES)
def test_public_names_can_be_imported(name: str) -> None:
    """Every name is listed once, in order, and leads to a thing."""
    module = import_module(name)
    assert module.__all__ == sorted(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_shows_its_public_names_alone(package: str) -> None:
    """`dir` shows exactly these, and another is an attribute error."""
    module = import_module(package)
    assert dir(module) == module.__all__
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = module.Nothing


def test_every_error_can_be_imported_from_channels() -> None:
    """A user can `except IdentityMismatch`; besides errors there are about 25 names in all."""
    channels, agents = import_module("unspoken.channels"), import_module("unspoken.agents")
    assert set(errors.__all__) <= set(channels.__all__)
    assert len({*channels.__all__, *agents.__all__} - set(errors.__all__)) <= 25


def test_names_for_authors_have_one_home() -> None:
    """They can be imported from the package too, where they were before."""
    channels, authoring = (
        import_module("unspoken.channels"),
        import_module("unspoken.channels.authoring"),
    )
    for name in ("Arrival", "Carry", "CausalModel", "Channel", "LayerState", "Rotary", "Span"):
        assert getattr(channels, name) is getattr(authoring, name)
    for name in authoring.__all__:
        assert f"`{name}" in str(authoring.__doc__), name


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_no_torch(package: str) -> None:
    """The packages themselves are light, for commands that need no model."""
    heavy = "{name.split('.')[0] for name in sys.modules}"
    code = f"import sys, {package}\nprint(sorted({heavy} & {{'torch', 'transformers', 'numpy'}}))"
    assert python(code).stdout.strip() == "[]"
