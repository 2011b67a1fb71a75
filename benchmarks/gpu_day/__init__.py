"""Learn in minutes what a GPU says about the Triton kernels.

    python -m benchmarks.gpu_day OUT                        # 8 minutes
    python -m benchmarks.gpu_day OUT2 --after OUT/results.json   # 4 more: what is missing, then more of the search

Each part (`parts/`) is a process with a time limit of its own, so that one that hangs or crashes does not end the
others. Results are in OUT/results.json as each part ends, in OUT/RESULTS.md as a page, in OUT/log.txt with all output.
"""
