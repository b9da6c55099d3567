"""Processes and machines: ranks, launching, signals."""
