"""Grids of runs: every row of an ablation with several seeds, trained one by one or side by side, and measured.

``plan`` says which runs a grid is, ``needs`` which data they want, ``state`` guards the folder they go to, ``jobs``
does one of them, ``workers`` runs jobs in processes, ``results`` gathers the numbers.
"""
