"""What a renderer is, and those that the command line knows.

A new form is one object, and one line in ``RENDERERS``; from outside the package, ``renderer.render(result.report)`` is all
that is needed.
"""

from collections.abc import Sequence
from typing import Protocol

from onnxvitq.core.errors import ConfigError
from onnxvitq.report.renderers.as_csv import SensitivityCsv
from onnxvitq.report.renderers.as_json import ReportJson, SensitivityJson
from onnxvitq.report.renderers.tables import AblationTable, SensitivityTable, SummaryTable
from onnxvitq.report.report import Report


class Renderer(Protocol):
    """Makes text of a report."""

    @property
    def name(self) -> str:
        """What it is chosen by."""
        ...

    def render(self, report: Report) -> str:
        """The text, with a newline at its end; it only reads the report."""
        ...


RENDERERS: tuple[Renderer, ...] = (
    ReportJson(),
    SensitivityJson(),
    SensitivityCsv(),
    SummaryTable(),
    AblationTable(),
    SensitivityTable(),
)


def renderer(name: str, among: Sequence[Renderer] = RENDERERS) -> Renderer:
    """The renderer of that name.

    Raises:
        ConfigError: there is none.
    """
    for candidate in among:
        if candidate.name == name:
            return candidate
    raise ConfigError("renderer", f"expected {', '.join(known.name for known in among)}, got {name}")
