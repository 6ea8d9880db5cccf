"""Let Keras' ModelCheckpoint write into directories below PLACE: its own format, HDF5, and weights alone."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np

WAYS = {
    "keras": "{epoch:02d}-{val_loss:.2f}.keras",
    "hdf5": "{epoch:02d}-{val_loss:.2f}.h5",
    "weights": "weights.{epoch:02d}-{val_loss:.2f}.weights.h5",
}
ONES, ZEROS = np.ones((8, 2), "float32"), np.zeros((8, 1), "float32")


def model():
    made = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    made.compile("adam", keras.losses.MeanSquaredError())
    return made


def main(place):
    logging.disable(logging.WARNING)  # that HDF5 is the older one
    for way, name in WAYS.items():
        (place / way).mkdir()
        saves = keras.callbacks.ModelCheckpoint(place / way / name, save_weights_only=way == "weights")
        model().fit(ONES, ZEROS, epochs=4, validation_data=(ONES, ZEROS), callbacks=[saves], verbose=0)


def read(checkpoint):
    """Load it, with the state of its optimizer where it has one; say its loss, as its name has it."""
    if checkpoint.name.endswith(".weights.h5"):
        loaded = model()
        loaded.load_weights(checkpoint)
    else:
        loaded = keras.models.load_model(checkpoint)
    print(f"{loaded.evaluate(ONES, ZEROS, verbose=0):.2f}")


if __name__ == "__main__":
    if sys.argv[1] == "read":
        read(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
