"""Studies called as a person calls them."""

import io
import json
import sys
from contextlib import redirect_stdout
from typing import Any

import pytest


def study_of(module: Any, *args: object) -> dict[str, Any]:
    """What a study's command line prints as JSON."""
    out = io.StringIO()
    script = f"{module.__name__}.py"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setattr(sys, "argv", [script, *map(str, args), "--json"])
        module.main()
    found: dict[str, Any] = json.loads(out.getvalue())
    assert set(found) == {"machine", "rows", "summary"}
    return found
