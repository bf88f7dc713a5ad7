# `make demo` and `make test` set up everything they need, in .venv; Python 3.11 or newer is all that must be there.
PYTHON ?= python3
DEMO ?= .demo
BIN := .venv/bin

.PHONY: demo test check clean

demo: .venv/installed
	rm -rf $(DEMO)/store
	$(BIN)/extract-tracks --dataset demo --root $(DEMO)/videos --shards 2 --out $(DEMO)/store
	$(BIN)/inspect-tracks $(DEMO)/store
	$(BIN)/inspect-tracks $(DEMO)/store --verify
	$(BIN)/inspect-tracks $(DEMO)/store --render hand_held.avi --root $(DEMO)/videos --out $(DEMO)/hand_held.mp4
	$(BIN)/inspect-tracks $(DEMO)/store --render hand_held.avi --root $(DEMO)/videos --out $(DEMO)/hand_held.png
	rm -rf $(DEMO)/run
	$(BIN)/pretrain-motion --store $(DEMO)/store --root $(DEMO)/videos --recipe demo --model vit_tiny \
		--steps 200 --batch-size 10 --figure-every 100 --device cpu --out $(DEMO)/run
	@echo "Open $(DEMO)/hand_held.png: trajectories in the image on the left, without the camera on the right."
	@echo "Open $(DEMO)/run/figures/step-00000200.png: masked frames, true and predicted trajectories, frames."

test: check
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv $(DEMO) .pytest_cache .mypy_cache .ruff_cache
