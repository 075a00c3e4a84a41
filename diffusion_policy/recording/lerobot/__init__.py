"""LeRobot datasets, v3.0 and v2.1, read only with pyarrow and PyAV.

    info          meta/info.json: features, rates and the templates of file names
    tables        parquet files, with size limits checked before anything is read
    episodes      the rows and the stretch of video that make up an episode
    frames        frames of videos, decoded in sequence, and encoded pictures of a parquet column
    recordings    all of it as `recording.contract.Recordings`

Files are untrusted: every count is compared with the data, every path stays below the dataset's folder, and
nothing is read whose size, by a table's metadata, is implausible.
"""
