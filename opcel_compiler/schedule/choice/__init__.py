"""The choice of kernel families and their parameters, a file for each kind of anchor."""
