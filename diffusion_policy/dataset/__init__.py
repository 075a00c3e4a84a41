"""The dataset: its layout on disk, its windows, and what training reads from it."""
