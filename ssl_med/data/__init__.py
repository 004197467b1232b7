"""From a folder of scans to batches: index, readers, prepare, store, sampler, dataset, module."""
