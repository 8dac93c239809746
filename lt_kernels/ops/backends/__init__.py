"""Which kernels serve each operator: schemas, the C++ extension, Triton, the reference, and the checks before them."""
