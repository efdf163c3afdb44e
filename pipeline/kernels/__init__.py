"""NumPy arrays in, exact integers out, the same bits on every device.

Here belong the loops over pixels, for each device. They know nothing of dask, xarray or paths,
and divide nothing: that is done once, in `core.exact`. A new device is a module here and a line
in `backends`.
"""
