"""A size of the model for the tests: every width, depth and number of heads differs, and it is built in no time."""

from training.model import VIT_SIZES, VitSize

SMALL = "vit_test"
VIT_SIZES[SMALL] = VitSize(width=60, depth=3, heads=5, decoder_width=28, decoder_heads=2)
