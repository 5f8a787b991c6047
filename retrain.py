"""Retrains an image classifier on your own photos: photos in, a frozen graph and its labels out.

`python retrain.py --image_dir flower_photos` reads the photos, turns each into a vector by a frozen
network, trains a new softmax layer on the vectors, tests the result on photos that were held out,
and writes it. The steps are in retraining/run/retrain.py, the flags in retraining/cli/flags.py.
"""

from retraining.cli import start

if __name__ == "__main__":
    start.retrain()

from retraining.cli.retrain import main

__all__ = ["main"]
