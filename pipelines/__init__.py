"""Ray graphs, command line and presets: everything that runs the other packages.

Its functions are the public API of `clipmill`, which imports each on first use; importing this package loads nothing.
"""
