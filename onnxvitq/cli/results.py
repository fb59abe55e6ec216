"""What the main command writes and prints of a report."""

import sys
from pathlib import Path

from onnxvitq.cli.console import console_of_results, warn_skipped
from onnxvitq.core.files import atomic_file
from onnxvitq.report.model_records import LOST_DB
from onnxvitq.report.renderers.registry import renderer
from onnxvitq.report.renderers.tables import promise_text
from onnxvitq.report.report import Report

EXIT_BELOW_QUALITY = 3


def write_text(path: Path | None, text: str) -> None:
    """A file, replaced in one step; none where no path was given.

    Raises:
        OutputError: it cannot be written.
    """
    if path is not None:
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def write_results(report: Report, report_file: Path | None, sensitivity_file: Path | None) -> None:
    """The files that were asked for; how sensitivities are written is said by the file's suffix.

    Raises:
        OutputError: one cannot be written.
    """
    if report_file is not None:
        write_text(report_file, renderer("json").render(report))
    if sensitivity_file is not None:
        write_text(sensitivity_file, renderer(f"sensitivity{sensitivity_file.suffix}").render(report))


def print_results(report: Report, *, as_json: bool, quiet: bool, ablation: bool) -> None:
    """Files that were skipped, on standard error; then JSON and nothing else, or tables unless ``quiet``."""
    calibration = report.calibration
    warn_skipped(calibration.skipped)
    if report.quality is not None:
        warn_skipped(report.quality.data.skipped)
    if report.compare.lost:
        sys.stderr.write(f"onnxvitq: warning: {_lost(report)}\n")
    if as_json:
        sys.stdout.write(renderer("json").render(report))
        return
    if quiet:
        return
    if calibration.preprocessing is not None:
        origin = calibration.preprocessing_from
        console_of_results().print(f"preprocessing: {calibration.described} ({origin})", soft_wrap=True)
    for name in ("summary", *(("ablation",) if ablation else ()), "sensitivity"):
        sys.stdout.write(renderer(name).render(report))


def _lost(report: Report) -> str:
    compare = report.compare
    return (
        f"output {compare.output!r} is lost: {compare.sqnr_db} dB against the float model, expected {LOST_DB} or more"
    )


def exit_code(report: Report, *, strict: bool) -> int:
    """0, or 3 with the reason on standard error: the model is written, but not what was asked for."""
    if strict and not report.audit.sound:
        sys.stderr.write("onnxvitq: written, but the audit failed: a planned layer is not on an integer kernel\n")
        return EXIT_BELOW_QUALITY
    if strict and report.compare.lost:
        sys.stderr.write(f"onnxvitq: written, but {_lost(report)}\n")
        return EXIT_BELOW_QUALITY
    if report.quality is not None and not report.quality.kept:
        sys.stderr.write(f"onnxvitq: written, but too many decisions are lost: {promise_text(report.quality)}\n")
        return EXIT_BELOW_QUALITY
    return 0
