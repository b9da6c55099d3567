"""How well models cope with holes: the study, its conditions and hole kinds, its curves and figure."""
