"""LeRobot datasets, v3.0 and v2.1, read with pyarrow and PyAV alone.

    info          meta/info.json: features, rates and the templates of file names
    tables        parquet files, with limits before anything is read
    episodes      which rows and which stretch of which video an episode is
    frames        frames of videos, decoded one after the other, and encoded pictures of a parquet column
    recordings    all of it as `recording.contract.Recordings`

Files come from anywhere: every count is compared with what is there, every path stays below the dataset's folder, and
nothing is read that a table's metadata says is larger than it can be.
"""
