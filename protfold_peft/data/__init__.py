"""Data sets of structures: reading, cropping, collation."""
