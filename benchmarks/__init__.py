"""Commands that measure: ``python -m benchmarks.loading`` and the like print Markdown tables, peers in the same run."""
