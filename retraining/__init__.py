"""The parts of retrain.py and label_image.py. Each module says in its first line what it is for."""

import os

# NumPy's products here are small; spread over threads they wait for each other more than they
# gain (1.5 times slower on two cores). NumPy reads this when it is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
