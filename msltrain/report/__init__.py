"""The report: one self-contained HTML page that says what was measured, and shows it; beside it Markdown and JSON."""

from msltrain.report.page import describe_environment, write_report
from msltrain.report.runs import RunReport, open_run

__all__ = ["RunReport", "describe_environment", "open_run", "write_report"]
