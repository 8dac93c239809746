"""A folder of pictures with a long tail, made of real handwritten digits: FOLDER/train/CLASS and FOLDER/test/CLASS.

    python examples/digits_folder.py digits
    lt-kernels train --config folder --set data_options.root=digits --set network=mlp

The scans are scikit-learn's. docs/guides/own_data.md goes on from here.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEST = 50  # pictures a class

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "digits")
digits = load_digits()
pixels = (digits.images * 255 / 16).astype(np.uint8)  # [1797, 8, 8], 17 levels of grey
for label, name in enumerate(NAMES):
    scans = pixels[digits.target == label]
    most = int(124 * 0.01 ** (label / 9))  # 124 of the first class, 1 of the last
    for part, chosen in (("test", scans[:TEST]), ("train", scans[TEST : TEST + most])):
        (folder / part / name).mkdir(parents=True, exist_ok=True)
        for number, scan in enumerate(chosen):
            Image.fromarray(scan).save(folder / part / name / f"{number:03d}.png")
    print(f"{name}: {most} pictures for training, {TEST} for the test")
