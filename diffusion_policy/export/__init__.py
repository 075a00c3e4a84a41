"""Datasets, runs and policies, written in the formats of others; what is exported is only read.

episodes       what is exported: named numbers, frames, tasks and flags, from a dataset or from recordings
lerobot        a LeRobot v3.0 dataset of them, whole or not there at all
statistics     of its features, as LeRobot's policies read them
onnx_policy    a policy as one ONNX graph
zarr_zip       a dataset packed into one zip archive, which is read in place
"""
