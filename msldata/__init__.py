"""Labelled photographs and irregular masks in, verified WebDataset shards out."""

__version__ = "0.1.0"
