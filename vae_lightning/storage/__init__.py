"""From files to batches: reading and decoding files, the cache of pixels, the loader and its transforms."""
