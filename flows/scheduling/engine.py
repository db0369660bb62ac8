"""A run's process: Prefect's engine, whose end looks no more at the million objects that it imported."""

import atexit
import gc
import runpy

if __name__ == "__main__":
    atexit.register(gc.freeze)
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
