"""The log of a run."""

import logging

import structlog
from structlog.typing import FilteringBoundLogger

# Over the standard library's logger, so that a program that configures no logging sees warnings
# only.
_LOGGER = logging.getLogger("unspoken.scheduler")
_LINES: FilteringBoundLogger = structlog.wrap_logger(_LOGGER)


class RunLog:
    """Lines that all name their run; one that nobody sees costs next to nothing.

    Args:
        bound: What every line says.
    """

    def __init__(self, **bound: object) -> None:
        self._lines = _LINES.bind(**bound)

    @property
    def tells(self) -> bool:
        """Whether lines of information are seen."""
        return _LOGGER.isEnabledFor(logging.INFO)

    def info(self, event: str, **values: object) -> None:
        """A line of information."""
        if self.tells:
            self._lines.info(event, **values)

    def warning(self, event: str, **values: object) -> None:
        """A line that a person should see."""
        self._lines.warning(event, **values)
