"""CPUs: their descriptions, and what their kernels can take."""
