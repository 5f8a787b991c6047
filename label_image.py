"""Labels images with a retrained graph, or with any frozen image classifier.

`python label_image.py photo.jpg` prints the likeliest labels of a photo. The command is in
retraining/cli/label_image.py, the classifier in retraining/labelling/classifier.py.
"""

from retraining.cli import start

if __name__ == "__main__":
    start.label_image()

from retraining.cli.label_image import main

__all__ = ["main"]
