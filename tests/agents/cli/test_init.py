"""``unspoken init``: a file to begin with."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from unspoken.agents.cli.main import app


def test_what_init_writes_is_a_valid_workflow(tmp_path: Path) -> None:
    """So is what its comments offer."""
    file = tmp_path / "mine.yaml"
    assert CliRunner().invoke(app, ["init", str(file)]).exit_code == 0
    offered = tmp_path / "offered.yaml"
    lines = file.read_text(encoding="utf-8").splitlines()
    code = [line.replace("# ", "", 1) if _is_offer(line) else line for line in lines]
    offered.write_text("\n".join(code), encoding="utf-8")
    for path, told in ((file, "2 agents, 1 edge"), (offered, "3 agents, 2 edges")):
        result = CliRunner().invoke(app, ["validate", str(path)])
        assert (result.exit_code, told in result.stdout) == (0, True), result.output


def _is_offer(line: str) -> bool:
    word = line.strip().removeprefix("# ").strip()
    return line.startswith("  #") and word.startswith(
        ("checker:", "model:", "prompt:", "generate:", "- {", "sure:")
    )


@pytest.mark.parametrize("there", ["file", "folder"])
def test_init_overwrites_nothing(tmp_path: Path, there: str) -> None:
    """What is there stays as it is, and the error says so."""
    path = tmp_path / "workflow.yaml"
    path.mkdir() if there == "folder" else path.write_text("mine", encoding="utf-8")
    result = CliRunner().invoke(app, ["init", str(path)])
    assert result.exit_code != 0
    assert "exists" in result.output
    assert there == "folder" or path.read_text(encoding="utf-8") == "mine"
