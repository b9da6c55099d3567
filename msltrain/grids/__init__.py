"""Grids of runs: every row of an ablation with several seeds, trained one by one or side by side, and measured.

``plan`` says which runs make up a grid, ``needs`` which data they need, ``folder`` guards the folder they go to,
``jobs`` does one of them, ``workers`` runs jobs in processes, ``results`` gathers the numbers.
"""
