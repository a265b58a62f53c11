"""Data: scenes, folders, arrays, pipelines."""
