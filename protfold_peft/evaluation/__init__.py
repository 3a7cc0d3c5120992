"""Scores of files: pairing models with references, matching them, scoring in batches, tables and pictures."""
