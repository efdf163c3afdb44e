"""Where tasks run: threads, worker processes and clusters, through dask.

Here belong clusters and their configuration, executors, sums that survive a killed job, progress,
signals and memory limits. What a task does belongs to the room that defines it. A new kind of
cluster is a function in `launchers`.
"""
