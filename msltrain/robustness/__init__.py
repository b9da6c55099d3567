"""How well models bear holes: the study, its conditions and hole kinds, its curves and figure."""
