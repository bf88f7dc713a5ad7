"""pretrain-motion: a track store and its videos in, a pretrained video transformer out."""

import dataclasses
import importlib
import json
import logging
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import torch

from data_specs.dataset import DatasetError, dataset_names, load_spec, root_folder
from data_specs.durable import write_file
from data_specs.recipe import RecipeError
from data_specs.track_store import StoreError, StoreInfo, TrackStore
from training import checkpoint
from training.checkpoint import CheckpointError
from training.distributed import Group, barrier, open_group
from training.loop import train
from training.optim import make_optimizer, make_schedule, warmup_of
from training.pieces import MODEL_SIZES, build_task
from training.recipe import PretrainRecipe, load_recipe, recipe_names
from training.step import StoppedError
from training.task import Precision, Settings, Task

logger = logging.getLogger(__name__)

EXIT_DONE, EXIT_STOPPED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, os.EX_TEMPFAIL
