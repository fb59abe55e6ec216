"""The report as JSON, keys in the order in which they are documented."""

import json
from typing import Any

from onnxvitq.report.report import Report


def json_text(content: Any) -> str:
    """Indented JSON with a newline at its end.

    Raises:
        ValueError: a figure is NaN or infinite.
    """
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


class ReportJson:
    """The whole report."""

    name = "json"

    def render(self, report: Report) -> str:
        """The text."""
        return json_text(report.to_dict())


class SensitivityJson:
    """What the report has under ``sensitivity``; null where it was not measured."""

    name = "sensitivity.json"

    def render(self, report: Report) -> str:
        """The text."""
        return json_text(report.to_dict().get("sensitivity"))
