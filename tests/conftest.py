"""Each test process runs on one backend, KERAS_BACKEND; it is chosen here, before a test imports Keras."""

import os

from keras_mtp import backend

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network
backend.select()
