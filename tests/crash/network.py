"""The pipeline with a network that the crash tests kill: Dropout, Adam, and weights that are others in each process.

Run as `python tests/crash/network.py DSN LOG [NAME]`: it catches up and ends. ``HEADRACE_NETWORK_SEED`` makes the first
weights the same in every process, for comparing two logs; without it only the log can say what they were.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

import headrace as hr

OUTPUTS = ("network_out", "c.public.c_train")


def build(dsn: str, log: str | Path, name: str = "network") -> hr.App:
    """Each row is answered by the network before the cut that holds it."""
    if seed := os.environ.get("HEADRACE_NETWORK_SEED"):
        keras.utils.set_random_seed(int(seed))
    layers = [keras.Input((1,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.3), keras.layers.Dense(1)]
    network = keras.Sequential(layers)
    network.compile(keras.optimizers.Adam(0.01), "mse")
    app = hr.App(name, log=log)
    db = app.postgres(dsn, tables=r"public\.c_.*", prefix="c")
    model = app.model("network", network, features=["x"], target="y")
    model.learn(db["public.c_train"], every=8)
    model.predict(db["public.c_train"]).to("network_out")
    return app


if __name__ == "__main__":
    build(*sys.argv[1:]).run(until="caught-up")
