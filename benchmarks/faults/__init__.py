"""Faults on purpose: links that break, and a stack whose parts are killed while it works."""
