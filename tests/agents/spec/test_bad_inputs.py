"""What goes wrong outside the workflow file says so, with the error of its kind."""

from pathlib import Path

import pytest
from bad_inputs import BAD_INPUTS, BadInput, furnish


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("inputs")
    furnish(made)
    return made


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: bad.name)
def test_bad_input_is_refused(bad: BadInput, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake raises the error of its kind, with its message."""
    monkeypatch.chdir(folder)
    with pytest.raises(bad.error) as caught:
        bad.do()
    assert type(caught.value) is bad.error
    assert bad.message in str(caught.value)
