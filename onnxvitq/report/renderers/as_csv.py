"""The sensitivities as CSV."""

import csv
import io

from onnxvitq.report.report import Report

COLUMNS = ("block", "kind", "bits", "sqnr_db", "agreement", "share", "tensors")


class SensitivityCsv:
    """One line a kind of site and block; an empty block is outside all blocks, several tensors are joined by spaces."""

    name = "sensitivity.csv"

    def render(self, report: Report) -> str:
        """The text; the columns' names alone where no sensitivities were measured."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for part in report.sensitivity.parts if report.sensitivity is not None else ():
            values = (getattr(part, column) for column in COLUMNS)
            writer.writerow(" ".join(value) if isinstance(value, tuple) else value for value in values)
        return file.getvalue()
