"""The denoisers, their masks and schedulers, and the moving average of the weights."""
