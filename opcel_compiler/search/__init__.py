"""Choices that are measured: candidates of kernels run by themselves, and the lock file that keeps the best."""
