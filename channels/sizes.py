"""Numbers of bytes as people write them."""

import re

_UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000 ** (n + 1) for n, letter in enumerate("kmgt")},
    **{f"{letter}ib": 1024 ** (n + 1) for n, letter in enumerate("kmgt")},
}

SIZE = r"^[0-9]+(\.[0-9]+)? ?([kKmMgGtT][iI]?)?[bB]?$"
"""What `parse_bytes` takes, as a regular expression."""


def parse_bytes(text: str) -> int:
    """Bytes of a size such as ``2GB``, ``1.5 GiB`` or ``800000``.

    Raises:
        ValueError: It is no size, or less than a byte.
    """
    written = text.strip()
    if not re.match(SIZE, written):
        raise ValueError(f"{text!r} is no size")
    number, unit = re.match(r"([0-9.]+) ?(.*)", written).groups()  # type: ignore[union-attr]
    short = unit.lower()
    factor = _UNITS[short if short in _UNITS else f"{short}b"]
    nbytes = int(float(number) * factor)
    if nbytes < 1:
        raise ValueError(f"{text!r} is less than a byte")
    return nbytes


def shown_bytes(nbytes: int) -> str:
    """Bytes for people: ``812 B``, ``4.2 MB``."""
    number, unit = float(nbytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(number) < 999.95 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
