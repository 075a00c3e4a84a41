"""Foreign zarr datasets (public diffusion_policy sets, UMI) as recordings.

place       the input's form: a zarr in a folder or zip, or the older collector's replay_buffer.zarr and videos
meaning     which arrays are numbers and which are cameras; prints a missing mapping
frames      frames of an array, whatever its value range and chunks
recordings  the episodes
"""
