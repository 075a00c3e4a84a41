"""Writes datasets, runs and policies in other projects' formats; what is exported is only read.

episodes       what is exported: named numbers, frames, tasks and flags, from a dataset or from recordings
lerobot        a LeRobot v3.0 dataset of them, complete or not there at all
statistics     statistics of its features, as read by LeRobot's policies
onnx_policy    a policy as one ONNX graph
zarr_zip       a dataset packed into one zip archive, which can be read in place
"""
