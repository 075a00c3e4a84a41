"""The same numbers as torch, faster on a CPU: arithmetic, convolution, group norm, and compiled kernels."""
