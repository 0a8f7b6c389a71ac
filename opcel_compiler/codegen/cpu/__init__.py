"""C++ for CPUs: kernels from the templates in csrc/kernels, one generated host function, one shared library."""
