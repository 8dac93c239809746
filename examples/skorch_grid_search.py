"""A grid search of scikit-learn over the strength of logit adjustment, scored by balanced accuracy.

    python examples/skorch_grid_search.py

The data are handwritten digits with a long tail. Each fold counts its own classes.
"""

import torch
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lt_kernels.data import load
from lt_kernels.integrations.skorch import LongTailClassifier
from lt_kernels.losses import LogitAdjustmentLoss


class Net(torch.nn.Sequential):
    """Two layers, from 64 pixels to the logits of 10 digits."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))


data = load("digits-lt", imbalance=20)
images, labels = (part.numpy() for part in data.train)
torch.manual_seed(0)
net = LongTailClassifier(
    Net,
    criterion=LogitAdjustmentLoss,
    classes=range(10),
    max_epochs=20,
    lr=0.1,
    optimizer__momentum=0.9,
    iterator_train__shuffle=True,
    train_split=None,
    verbose=0,
)
pipe = make_pipeline(StandardScaler(), net)
grid = {"longtailclassifier__criterion__tau": [0.0, 0.5, 1.0, 1.5]}
search = GridSearchCV(pipe, grid, scoring="balanced_accuracy", cv=3).fit(images.reshape(len(images), -1), labels)
for tau, score in zip(grid["longtailclassifier__criterion__tau"], search.cv_results_["mean_test_score"], strict=True):
    print(f"tau {tau}: balanced accuracy {score:.3f} over the folds")

tests, target = (part.numpy() for part in data.test)
probabilities = search.predict_proba(tests.reshape(len(tests), -1))
print(f"on the test set: {balanced_accuracy_score(target, probabilities.argmax(1)):.3f}")
print(f"mean probability of the true class: {probabilities[range(len(target)), target].mean():.3f}")
