"""The report: one self-contained HTML page that shows what was measured, with Markdown and JSON beside it."""

from msltrain.report.open_runs import RunReport, open_run
from msltrain.report.write_report import describe_environment, write_report

__all__ = ["RunReport", "describe_environment", "open_run", "write_report"]
