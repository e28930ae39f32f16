"""`python -m keras_mtp` is `keras-mtp`."""

from keras_mtp.cli import main

main()
