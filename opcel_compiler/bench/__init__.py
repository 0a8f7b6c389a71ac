"""Measurements of compiled models, alone and beside other engines. How: docs/measuring.md."""
