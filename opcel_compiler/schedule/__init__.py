"""Graph → Program: grouping into kernels, placement, layouts' views, memory planning, the cost model."""
