"""Recognisers: any timm backbone with a CSRA or a plain head."""
