"""``unspoken bridge fit``, ``bridge audit``, ``bench bridge`` and the figures."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import call, done, refused
from flows import own_cache
from pairs import AUDIT, corpus, folders, quick_fits
from sample_bridges import AUDIT as SAMPLE
from sample_bridges import manifest, tensors

from unspoken.agents.cli import audit_view as view
from unspoken.agents.cli.audit_view import retention_rows
from unspoken.agents.cli.bridge_fit import progress_line
from unspoken.channels.bridges import make as bridging
from unspoken.channels.bridges.audit import plan as auditing
from unspoken.channels.bridges.fit.progress import FitProgress
from unspoken.channels.bridges.fit.settings import FitSettings
from unspoken.channels.bridges.fit.validation import Scores
from unspoken.channels.bridges.folder import read
from unspoken.channels.bridges.store import BridgeStore

pytestmark = pytest.mark.long

SMALL = (
    "--longest",
    256,
    "--steps",
    2,
    "--rank",
    8,
    "--source-layers",
    2,
    "--hidden",
    16,
    "--bottleneck",
    4,
)
ROWS = tuple(
    {
        "data": data,
        "way": way,
        "retention": kept,
        "retention_low": kept - 0.1,
        "retention_high": kept + 0.1,
    }
    for data in ("continuation", "recall")
    for way, kept in (("text", 1.0), ("bridge", 0.8), ("zeros", -0.4))
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("models")
    with own_cache(folder / "cache"):
        folders(folder)
        yield folder


@pytest.fixture
def pair(root: Path) -> tuple[Path, Path]:
    return root / "gemma", root / "llama"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits and audits of seconds."""
    quick_fits(monkeypatch)

    def rows(self: auditing.AuditPlan, *given: Any, **named: Any) -> Any:
        few = replace(AUDIT, text=self.text, qa=self.qa, recall=self.recall)
        return made(few, *given, **named)

    made = auditing.AuditPlan.rows
    monkeypatch.setattr(auditing.AuditPlan, "rows", rows)
    audits = {name: getattr(AUDIT.settings, name) for name in AUDIT.settings.__slots__}
    fits = {"gram_tokens": 300, "hidden": 8, "bottleneck": 4}
    for make, changes in ((auditing.AuditSettings.__init__, audits), (FitSettings.__init__, fits)):
        defaults = {**make.__kwdefaults__, **changes}
        monkeypatch.setattr(make, "__kwdefaults__", defaults)


def test_fit_then_audit_then_show(
    pair: tuple[Path, Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit prints its folder; a first audit is kept; another one only with --save."""
    monkeypatch.setattr(sys, "argv", ["unspoken", "bridge", "fit", "a b"])
    result = call("bridge", "fit", *pair, "--corpus", corpus(root), *SMALL, "--no-audit")
    assert result.exit_code == 0, result.stderr
    folder = Path(result.stdout.strip())
    fitted, _ = read(folder)
    assert fitted.config["rank"] == 8 and len(fitted.config["source_layers"]) == 2
    assert (fitted.config["hidden"], fitted.config["bottleneck"]) == (16, 4)
    assert fitted.fit["steps"] == 2 and fitted.fit["command"] == "unspoken bridge fit 'a b'"
    assert fitted.audit is None and folder.parent == BridgeStore().root
    for part in ("at most", "gram", "train", "trained", "KL"):
        assert part in result.stderr
    assert done("bridge", "fit", *pair).splitlines()[-1] == str(folder)
    json_audit = json.loads(done("bridge", "audit", *pair, "--json"))
    after, _ = read(folder)
    assert after.audit is not None and json_audit["earned"] == after.audit.retention_lower_bound
    said = done("bridge", "show", *pair)
    for part in ("another example's message", "the receiver as its own sharer", "ttft_speedup_32"):
        assert part in said
    qa = root / "qa.jsonl"
    row = {"context": "the key is here", "question": "where?", "answers": ["here"]}
    qa.write_text("\n".join(json.dumps(row | {"context": f"{n} is the key"}) for n in range(3)))
    done("bridge", "audit", folder, "--qa", qa)
    assert read(folder)[0].audit == after.audit
    assert "qa.jsonl" in done("bridge", "audit", folder, "--qa", qa, "--save")
    audited = read(folder)[0].audit
    assert audited is not None and [file.name for file in audited.files] == ["qa.jsonl"]
    assert {"qa_retention", "retention_builtin"} <= set(audited.summary)


def test_bench_bridge_gives_the_audit(pair: tuple[Path, Path], root: Path) -> None:
    """Without a bridge the error says how to get one; with one, machine, rows and summary."""
    assert "there is no bridge" in refused("bench", "bridge", *pair)
    done("bridge", "fit", *pair, "--corpus", corpus(root), *SMALL, "--no-audit")
    bench = json.loads(done("bench", "bridge", *pair, "--json"))
    assert bench["machine"]["sharer"] == str(pair[0]) and bench["machine"]["model"] == str(pair[1])
    assert {row["data"] for row in bench["rows"]} >= {"continuation", "question", "recall"}
    wanted = (
        "fit_minutes_closed_form fit_minutes_total size_mb retention specific_retention "
        "qa_retention "
        "recall_accuracy recall_accuracy_mismatched earned"
    )
    assert {f"{name}_builtin" for name in wanted.split()} <= set(bench["summary"])


def test_what_cannot_be_measured_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Wrong files, options and numbers of models, most before any model is loaded."""
    assert "there is no file" in refused("bridge", "fit", *pair, "--qa", tmp_path / "none")
    assert "there is no file" in refused("bridge", "audit", *pair, "--text", tmp_path / "none")
    assert "measures one model" in refused("bench", "hop", pair[0])
    assert "measures two models" in refused("bench", "bridge", pair[0])
    assert "measures two models" in refused("bench", "bridge", "--model", pair[0])
    (tmp_path / "rows").write_text("")
    assert "takes no --recall" in refused("bench", "hop", "--recall", tmp_path / "rows")
    assert "takes no --refit" in refused("bench", "hop", "--refit")
    assert "takes no --bridge" in refused("bench", "hop", "--bridge", tmp_path)
    assert "python examples/studies/dial.py" in refused("bench", "dial", *pair)
    assert "--train-dtype 'float7'" in refused("bridge", "fit", *pair, "--train-dtype", "float7")
    result = call("bridge", "fit", *pair, "--native-layers", 2)
    assert result.exit_code == 2 and "has 2 layers" in result.stderr


def test_an_interrupted_fit_says_what_is_kept(
    pair: tuple[Path, Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends with 130; after the closed form there is a folder to go on from."""

    def stop(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    args = ("bridge", "fit", *pair, "--corpus", corpus(root), *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(bridging, "ProjectorFit", stop)
        result = call(*args)
    assert result.exit_code == 130 and "nothing was kept yet" in result.stderr
    with monkeypatch.context() as patch:
        patch.setattr(bridging, "audit", stop)
        result = call(*args)
    assert result.exit_code == 130 and "the same command goes on from it" in result.stderr
    result = call(*args, "--no-audit")
    assert result.exit_code == 0 and "gram" not in result.stderr


def test_progress_tells_loss_and_retention() -> None:
    """One line: how far, the loss, and per group what is kept with the message and with another."""
    scores = Scores(
        retention={"text": 0.9, "recall": 0.5},
        mismatched={"text": 0.1, "recall": -0.2},
        kl=0.25,
        loss=2.0,
    )
    assert progress_line(FitProgress(stage="train", fraction=0.5, loss=1.25, scores=scores)) == (
        "50% trained, loss 1.250, text 0.90 (0.10 with another message), "
        "recall 0.50 (-0.20 with another message), KL 0.250"
    )


# Figures


def drawn(rows: tuple[dict[str, Any], ...] = ROWS) -> Path:
    return BridgeStore().save(manifest(audit=SAMPLE.model_copy(update={"rows": rows})), tensors())


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_an_audit_is_drawn(kind: str, tmp_path: Path) -> None:
    """Into a file of either kind, with its ways and data sets."""
    file = tmp_path / f"audit.{kind}"
    done("bridge", "show", drawn(), "--figure", file)
    data = file.read_bytes()
    assert data.startswith(b"\x89PNG") if kind == "png" else b"<svg" in data
    assert len(data) > 4000


def test_what_cannot_be_drawn_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong ending, no audit, no such folder, and no matplotlib."""
    bridge = drawn()
    assert ".png or .svg" in refused("bridge", "show", bridge, "--figure", tmp_path / "a.txt")
    none = BridgeStore().save(manifest("c/d"), tensors())
    assert "no audit to draw" in refused("bridge", "show", none, "--figure", tmp_path / "a.png")
    lost = tmp_path / "lost" / "a.png"
    assert "cannot be written" in refused("bridge", "show", bridge, "--figure", lost)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = refused("bridge", "show", bridge, "--figure", tmp_path / "a.png")
    assert 'pip install "unspoken[figures]"' in said


def test_bars_show_what_is_kept() -> None:
    """A bar per condition, its length the share kept, with its interval."""
    said = done("bridge", "show", drawn())
    (line,) = {line.strip() for line in said.splitlines() if "█" in line and "0.80" in line}
    assert "0.70 … 0.90" in line and line.startswith("bridge")
    assert line.count("█") + line.count("▓") == 32
    assert {way["way"] for way in retention_rows(ROWS)["recall"]} == {"bridge", "zeros"}
    assert view._bar(-0.4, -0.5, -0.3).strip() == "│"
    assert view._bar(2.0, 1.5, 2.5) == "█" * view.WIDTH + "│"
