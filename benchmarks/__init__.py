"""Measurements of compiled models against other engines. Not part of the installed package."""
