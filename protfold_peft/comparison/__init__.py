"""Sweeps of adapter methods and ranks on held-out targets: runs, scores, statistics, tables, plots, the report."""
