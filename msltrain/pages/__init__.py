"""What every page shares: base template, style sheet, SVG lines, numbers as text."""
