"""The dataset format: samples and an index in Parquet, images in uncompressed tar shards."""
