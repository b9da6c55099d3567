"""Pages that stand alone: one base template, one style sheet, colours; everything shown is escaped by the templates."""
