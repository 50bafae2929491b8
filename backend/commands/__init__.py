"""The commands of `vlm`, by subject: options and their texts; the work is done by the modules that they import.

Each command imports what it needs when it runs, so that `vlm --help` answers at once.
"""
