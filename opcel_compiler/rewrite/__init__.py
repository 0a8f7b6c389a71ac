"""Patterns, rules, the bounded driver, the pass manager, instruments, and pipelines as text."""
