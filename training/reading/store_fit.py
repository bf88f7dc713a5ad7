"""Whether a track store has what a recipe asks of it; where not, what would."""

from data_specs.dataset import DatasetSpec, dataset_names, load_spec
from data_specs.track_store import StoreInfo
from training.recipe import PretrainRecipe
from training.targets import check_normalisation


class StoreFitError(ValueError):
    """A store that cannot serve a recipe; the message names both and the way out."""


def with_dataset_defaults(recipe: PretrainRecipe, info: StoreInfo) -> PretrainRecipe:
    """The recipe with the clip stride and flips of the store's data set where it leaves them to it.

    A store from before 0.3 does not say them: the shipped data set of its name does, else `DatasetSpec`'s defaults.
    """
    spec = load_spec(info.dataset) if info.dataset in dataset_names() else DatasetSpec
    return recipe.resolved(
        clip_stride=spec.clip_stride if info.clip_stride is None else info.clip_stride,
        flip=spec.flip if info.flip is None else info.flip,
    )


def predicted_steps(recipe: PretrainRecipe, info: StoreInfo) -> int:
    """Steps that one token predicts of a trajectory."""
    return 1 if recipe.anchoring == "clip" else min(recipe.trajectory_length or info.recipe.length, info.recipe.length)


def check_store_fits(recipe: PretrainRecipe, info: StoreInfo, store: str) -> None:
    """Raise StoreFitError with every reason for which this store cannot serve the (resolved) recipe."""
    problems = [*_arrays(recipe, info), *_times(recipe, info)] if recipe.reads_tracks else []
    if problems:
        raise StoreFitError(f"store {store} cannot serve recipe {recipe.name}:\n  " + "\n  ".join(problems))
    check_normalisation(recipe, predicted_steps(recipe, info))


def _arrays(recipe: PretrainRecipe, info: StoreInfo) -> list[str]:
    stored, problems = info.recipe, []
    needs_displacements = recipe.heads_need_displacements or recipe.has_motion_mask
    if "trajectory_hog" in recipe.heads and not stored.hog:
        problems.append("it has no HOG (hog: false); extract with hog: true, or leave the head trajectory_hog out")
    problems += [
        f"it has no {name}; extract with descriptors: [{name}], or leave the head {name} out"
        for name in ("flow", "hof", "mbh")
        if name in recipe.heads and name not in stored.descriptors
    ]
    if needs_displacements and recipe.remove_camera and not stored.remove_camera:
        problems.append(
            "its cameras were not estimated (remove_camera: false), so they cannot be taken out of its displacements; "
            "train with remove_camera: false, or extract with remove_camera: true"
        )
    if not recipe.remove_camera and stored.positions_in == "stabilised":
        problems.append(
            "its positions are stabilised: the camera cannot be put back (remove_camera: false); extract with "
            "positions_in: image"
        )
    if recipe.trajectory_length is not None and recipe.trajectory_length > stored.length:
        problems.append(f"trajectory_length is {recipe.trajectory_length}, its trajectories have {stored.length} steps")
    return problems


def _times(recipe: PretrainRecipe, info: StoreInfo) -> list[str]:
    """Whether a clip's tokens find trajectories that start, and step, where they need them (design of the store)."""
    stored, stride, problems = info.recipe, recipe.clip_stride or 1, []
    tubelet = recipe.tubelet * stride
    start_stride = stored.start_stride or 1
    if recipe.anchoring == "clip" and stored.frame_step != tubelet:
        problems.append(
            f"anchoring at the clip needs a trajectory step of one tubelet, {recipe.tubelet} x clip stride {stride} = "
            f"{tubelet} frames; its frame_step is {stored.frame_step}; extract with frame_step: {tubelet}"
        )
    short_term = [name for name in ("flow", "hof", "mbh") if name in recipe.heads]
    if recipe.anchoring == "clip" and short_term:
        problems.append(f"{' and '.join(short_term)} describe a tubelet's first frame: they need anchoring: tubelet")
    if recipe.anchoring == "tubelet":
        period, what = (stride, "") if recipe.shuffle_frames else (tubelet, f"tubelet {recipe.tubelet} x ")
        if period % start_stride:
            divisors = ", ".join(str(d) for d in range(1, period + 1) if period % d == 0)
            fitting = [s for s in range(1, 17) if s * (period // stride) % start_stride == 0]
            problems.append(
                f"its start_stride is {start_stride}, which does not divide {what}clip stride {stride} = {period}; "
                f"start strides that fit this clip are {divisors} (extract again), clip strides that fit this "
                f"store are {', '.join(map(str, fitting))}, …"
            )
    if not recipe.interpolate and stored.frame_step != stride:
        problems.append(
            f"interpolate: false needs trajectories at the clip stride, {stride} frames; its frame_step is "
            f"{stored.frame_step}; extract with frame_step: {stride}"
        )
    return problems
