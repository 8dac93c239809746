"""How operators get their kernels: schemas, the C++ extension, Triton, the reference, and checks of arguments."""
