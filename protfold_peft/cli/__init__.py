"""The command line: one small file per command that parses, calls and prints."""
