"""Zarr datasets of others (public diffusion_policy sets, UMI) as recordings.

place       what is there: a zarr in a folder or zip, or the older collector's replay_buffer.zarr and videos
meaning     which arrays are numbers and which are cameras; the mapping that is missing, printed
frames      frames of an array, whatever its numbers and chunks
recordings  the episodes
"""
