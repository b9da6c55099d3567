"""The report: one self-contained HTML page that says what was measured, and shows it."""

from msltrain.report.finding import RunReport
from msltrain.report.page import describe_environment, write_report

__all__ = ["RunReport", "describe_environment", "write_report"]
