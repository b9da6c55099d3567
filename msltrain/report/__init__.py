"""The report: one self-contained HTML page that shows what was measured, with Markdown and JSON beside it."""
