"""Configuration: frozen dataclasses, presets, TOML files in which an unknown key is an error."""

import dataclasses
import difflib
import math
import tomllib
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from MAESILLib.runtime.errors import InputError
from MAESILLib.runtime.resources import resource_path

Triple = tuple[int, int, int]
Section = TypeVar("Section")
Window = tuple[float, float]

PRESETS = ("tiny", "small", "base", "paper")
"""Files in Resources/Presets, each over the defaults below."""
STRATEGY_NAMES = ("dual", "uniform", "product", "tube", "group", "block", "none")
"""The masks of :mod:`MAESILLib.mae.masking`, named here because that module needs torch."""
HIDING_NAMES = tuple(name for name in STRATEGY_NAMES if name != "none")
"""Those that training can draw."""
COVERAGE_NAMES = ("single", "complete")
WIDE = (-1000.0, 1000.0)
SOFT_TISSUE = (-160.0, 240.0)


@dataclass(frozen=True)
class Rule:
    """What a value, or each of a list of values, must be."""

    holds: Callable[[Any], bool]
    text: str


def one_of(*names: str) -> Rule:
    return Rule(lambda value: value in names, f"one of {', '.join(names)}")


def within(low: float, high: float) -> Rule:
    """Return the rule of a number in [low, high]."""
    return Rule(lambda value: low <= value <= high, f"from {low:g} to {high:g}")


NOT_NEGATIVE = Rule(lambda value: 0 <= value < math.inf, "at least 0")
POSITIVE = Rule(lambda value: value > 0, "above 0")
MASK_RATIO = Rule(lambda ratio: 0 < ratio <= 0.95, "above 0 and at most 0.95")
Amount = Annotated[float, NOT_NEGATIVE]
Count = Annotated[int, Rule(lambda value: value >= 1, "at least 1")]
Share = Annotated[float, within(0, 1)]


@dataclass(frozen=True)
class Preprocessing:
    """How a CT becomes the model's input."""

    spacing_mm: Annotated[float, within(0.05, 20)] = 1.5
    """Isotropic voxel size of the model's grid."""
    windows_hu: Annotated[tuple[Window, ...], within(-32768, 32767)] = (WIDE, SOFT_TISSUE)
    """HU values mapped to 0 and 1, clipped beyond; one channel each. The HU of pictures are read from the first."""

    @property
    def window_hu(self) -> Window:
        """The first window: the one of pictures and metrics."""
        return self.windows_hu[0]


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the network. Sizes are voxels (D, H, W)."""

    superpatch_size: Annotated[Triple, within(1, 4096)] = (128, 128, 128)
    patch_size: Triple = (8, 8, 8)
    encoder_width: Annotated[int, within(6, 16384)] = 192
    encoder_depth: Annotated[int, within(1, 1024)] = 6
    head_width: Annotated[int, within(1, 1024)] = 48
    """Width of one attention head of encoder and decoder; with rotary positions a multiple of 6."""
    positions: Annotated[str, one_of("rotary", "sincos")] = "rotary"
    """rotary (in the attention, relative) or sincos (added to the tokens, fixed)."""
    decoder: Annotated[str, one_of("cross", "self")] = "cross"
    """cross (hidden tokens attend to encoded ones) or self (all tokens attend to all)."""
    decoder_width: Annotated[int, within(6, 16384)] = 96
    decoder_depth: Annotated[int, within(1, 1024)] = 3
    block_mix: bool = True
    """The decoder reads a learned mix of the outputs of all encoder blocks; else that of the last one."""
    completion_channels: Annotated[tuple[int, ...], within(1, 4096)] = (16, 32, 64)
    """Channels of the completion at half, quarter, ... resolution."""


@dataclass(frozen=True)
class MaskTraining:
    """Which masks training draws; each batch has one strategy and one ratio, so its shapes are fixed."""

    strategies: Annotated[tuple[str, ...], one_of(*HIDING_NAMES)] = ("dual", "dual", "uniform", "group")
    """Sampled uniformly; repeat a name to give it more weight."""
    ratios: Annotated[tuple[float, ...], MASK_RATIO] = (0.65, 0.7, 0.75, 0.75, 0.8, 0.85)
    """Mask ratios, sampled uniformly; split evenly between the plane and the axis step."""


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, sampling and logging. Steps count optimiser updates."""

    steps: Count = 20000
    batch_size: Count = 16
    """Crops of one update, over all ranks and passes."""
    accumulation: Count = 1
    """Passes of each rank that share out an update where it does not fit at once; the result is the same."""
    crop_size: Triple = (64, 64, 64)
    """Voxels of a training crop, at most a superpatch."""
    learning_rate: Amount = 8e-4
    final_learning_rate: Amount = 1e-5
    warmup_steps: Annotated[int, NOT_NEGATIVE] = 200
    """Steps over which the learning rate rises; it is constant after them."""
    cooldown_share: Share = 0.1
    """Last share of the steps, in which it falls with 1 - sqrt (Haegele et al. 2024, arXiv 2405.18392); 0: none."""
    cooldown_crop_size: Triple = (128, 128, 128)
    """Crops of every second update of the cool-down, fewer by as much as they are larger."""
    weight_decay: Amount = 0.05
    betas: Annotated[tuple[float, float], Rule(lambda beta: 0 <= beta < 1, "from 0 to below 1")] = (0.9, 0.95)
    gradient_clip: Annotated[float, POSITIVE] = 1.0
    ema_decay: Share = 0.999
    decoded_ratio: Annotated[float, Rule(lambda ratio: 0 < ratio <= 1, "above 0 and at most 1")] = 0.5
    """Share of the hidden tokens that is decoded in a step."""
    band_slope: Amount = 0.0
    """The error of each frequency of a patch is weighted by 1 + its square to half this power, 0: all alike."""
    teacher_weight: Amount = 0.1
    """Weight of predicting what the averaged encoder, which sees everything, makes of the hidden tokens."""
    teacher_crops: Count = 4
    """Crops of an update whose latents are predicted."""
    core: bool = True
    """Train encoder and decoder; false: completion and read-out alone, on those of a checkpoint."""
    completion: bool = True
    """Train the completion beside the network; it reads detached inputs."""
    completion_crops: Count = 4
    """Crops of an update that it is trained on."""
    completion_gradient_weight: Amount = 0.1
    """Weight of the squared error of steps between neighbouring voxels, next to that of the voxels."""
    readout: bool = True
    """Train the read-out of visible patches beside the network, on detached tokens."""
    reader_learning_rate: Amount = 1e-3
    """Learning rate of completion and read-out, on the same schedule."""
    flip: bool = True
    """Mirror left and right in half of the crops."""
    scale_jitter: Share = 0.1
    """Largest relative change of contrast."""
    shift_jitter_hu: Amount = 20.0
    """Largest shift."""
    noise_hu: Amount = 10.0
    """Largest standard deviation of the noise added to the input; the target is clean."""
    volume_weighting: Amount = 0.5
    """A volume is drawn with its voxel count to this power: 0 all alike, 1 by size."""
    min_foreground: Share = 0.2
    """Least share of a crop's voxels above -500 HU; poorer crops are drawn again."""
    precision: Annotated[str, one_of("auto", "fp32", "bf16")] = "auto"
    """auto (bf16 where a short calibration finds it faster, else fp32), fp32 or bf16."""
    compile: bool = False
    """torch.compile the blocks of the network."""
    loader_threads: Count = 4
    """Threads that make batches ahead of time, from crops that they read."""
    validation_share: Share = 0.1
    """Share of the patients held out, where the cache names no validation split."""
    validate_every: Count = 1000
    validation_superpatches: Count = 16
    """Superpatches of the validation set, spread over its volumes, measured with masks on."""
    preview_at: Annotated[int, NOT_NEGATIVE] = 50
    """Step of the first preview picture; later ones come with each validation."""
    checkpoint_every: Count = 500
    log_every: Count = 20
    seed: Annotated[int, within(0, 2**63 - 1)] = 0

    @property
    def cooldown_from(self) -> int:
        """First step (from 0) of the cool-down; ``steps`` without one."""
        return self.steps - round(self.cooldown_share * self.steps)


@dataclass(frozen=True)
class Config:
    """Everything a training run depends on, apart from its data."""

    preset: str = "small"
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    model: ModelConfig = field(default_factory=ModelConfig)
    mask: MaskTraining = field(default_factory=MaskTraining)
    train: TrainConfig = field(default_factory=TrainConfig)


FREE_KEYS = {
    ("train", "steps"),
    ("train", "accumulation"),
    ("train", "compile"),
    ("train", "loader_threads"),
    ("train", "validate_every"),
    ("train", "preview_at"),
    ("train", "checkpoint_every"),
    ("train", "log_every"),
}
"""What may differ on resuming: how often something is written, how it is run, when it ends.

``accumulation`` and the number of ranks divide an update; its samples are the same."""
SCHEDULE = {("train", "steps"), ("train", "cooldown_share")}
"""What a branch that cools down changes."""


def load(path: Path | str | None, preset_name: str | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Read a TOML file over a preset.

    Args:
        path: the file, or None for the preset alone. Its sections are those of :class:`Config`.
        preset_name: the preset to start from; overrules the file's ``preset``.
        overrides: nested values that overrule the file's.

    Raises:
        InputError: the file cannot be read, or holds an unknown key or a value of a wrong kind.
    """
    values: dict[str, Any] = {}
    where = "the configuration"
    if path is not None:
        where = str(path)
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}", "check the path") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not valid TOML: {error}", "correct the line") from None
    if preset_name is not None:
        values["preset"] = preset_name
    return from_dict(merged(values, overrides or {}), where)


def from_dict(values: dict[str, Any], where: str = "the configuration") -> Config:
    """Build a configuration from nested values over the preset they name.

    Raises:
        InputError: an unknown key or preset, or a value of a wrong kind.
    """
    name = values.get("preset", "small")
    if name not in PRESETS:
        raise InputError(f"unknown preset '{name}' in {where}", f"choose one of {', '.join(PRESETS)}")
    preset = tomllib.loads(resource_path(f"Presets/{name}.toml").read_text(encoding="utf-8"))
    config = _build(Config, merged(preset, {**values, "preset": name}), where, "")
    check(config, where)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Return the dataclass as nested dictionaries of plain JSON values."""
    return {
        key: to_dict(value) if dataclasses.is_dataclass(value) else list(value) if isinstance(value, tuple) else value
        for key, value in ((f.name, getattr(config, f.name)) for f in dataclasses.fields(config))
    }


def complete_from_dict(cls: type[Section], values: dict[str, Any], where: str) -> Section:
    """Build a section of which every value is given, as a checkpoint holds them.

    Raises:
        InputError: a value is missing, unknown or of a wrong kind.
    """
    if missing := sorted({f.name for f in dataclasses.fields(cls)} - set(values)):  # type: ignore[arg-type]
        raise InputError(f"{where} lacks '{missing[0]}' in its metadata", "it is incomplete; get it again")
    return _build(cls, values, where, "")


def check(config: Config, where: str = "the configuration") -> None:
    """Raise InputError for values that contradict each other or lie out of range."""
    check_model(config.model, where)
    check_preprocessing(config.preprocessing, where)
    model, mask, train = config.model, config.mask, config.train
    _check_rules(mask, "mask", where)
    _check_rules(train, "train", where)
    check_sizes(train.crop_size, model.patch_size)
    check_sizes(train.cooldown_crop_size, model.patch_size)
    _refuse(where, not mask.strategies or not mask.ratios, "mask.strategies and mask.ratios need an entry")
    _refuse(
        where,
        not (train.core or train.completion or train.readout),
        "one of train.core, train.completion and train.readout must be true",
    )
    crops = (train.crop_size, train.cooldown_crop_size) if train.cooldown_from < train.steps else (train.crop_size,)
    for crop in crops:
        _refuse(
            where,
            any(c > s for c, s in zip(crop, model.superpatch_size, strict=True)),
            f"a training crop {crop} exceeds model.superpatch_size {model.superpatch_size}",
        )
    replaced = math.lcm(math.prod(train.crop_size), math.prod(crops[-1])) // math.prod(train.crop_size)
    _refuse(
        where,
        train.batch_size % replaced != 0,
        f"train.batch_size {train.batch_size} is no multiple of {replaced}, as the cool-down needs, where crops of "
        f"train.cooldown_crop_size {train.cooldown_crop_size} take the place of those of {train.crop_size}",
    )


def check_model(model: ModelConfig, where: str) -> None:
    """Raise InputError for a network that cannot be built."""
    _check_rules(model, "model", where)
    check_sizes(model.superpatch_size, model.patch_size)
    _refuse(where, not model.completion_channels, "model.completion_channels needs an entry")
    # the completion halves a patch once for each of its channels
    halving = 2 ** len(model.completion_channels)
    _refuse(
        where,
        any(p % halving for p in model.patch_size),
        f"model.patch_size {model.patch_size} is not a multiple of {halving}, as model.completion_channels needs",
    )
    _refuse(
        where,
        model.positions == "rotary" and model.head_width % 6 != 0,
        "model.head_width must be a multiple of 6 for rotary positions",
    )
    for name in ("encoder_width", "decoder_width"):
        _refuse(
            where, getattr(model, name) % model.head_width != 0, f"model.{name} is not a multiple of model.head_width"
        )


def check_sizes(superpatch_size: Triple, patch_size: Triple) -> None:
    """Raise InputError unless every superpatch side is a positive multiple of the patch side."""
    for s, p in zip(superpatch_size, patch_size, strict=True):
        if p < 1 or s < p or s % p:
            raise InputError(
                f"superpatch {superpatch_size} is not a multiple of patch {patch_size}",
                "choose sizes that divide on every axis",
            )


def check_preprocessing(preprocessing: Preprocessing, where: str) -> None:
    """Raise InputError for a grid or a window that no CT has."""
    windows = preprocessing.windows_hu
    _refuse(where, not 1 <= len(windows) <= 16, "preprocessing.windows_hu needs 1 to 16 windows")
    _check_rules(preprocessing, "preprocessing", where)
    _refuse(where, any(low >= high for low, high in windows), "preprocessing.windows_hu must rise")
    _refuse(
        where,
        any(low < windows[0][0] or high > windows[0][1] for low, high in windows),
        "preprocessing.windows_hu: the first window must contain the others",
    )


def _check_rules(section: Any, name: str, where: str) -> None:
    for key, hint in typing.get_type_hints(type(section), include_extras=True).items():
        for rule in getattr(hint, "__metadata__", ()):
            for value in _flat(getattr(section, key)):
                _refuse(where, not rule.holds(value), f"{name}.{key} must be {rule.text}, got {value!r}")


def _flat(value: Any) -> list[Any]:
    return [one for part in value for one in _flat(part)] if isinstance(value, tuple) else [value]


def _refuse(where: str, is_wrong: bool, message: str) -> None:
    if is_wrong:
        raise InputError(f"{message} ({where})", "change the value")


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return nested values, those of ``over`` before those of ``base``."""
    values = dict(base)
    for key, value in over.items():
        old = values.get(key)
        values[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return values


def _build(cls: type[Section], values: dict[str, Any], where: str, prefix: str) -> Section:
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise InputError(f"'{prefix[:-1]}' in {where} is not a section", f"write [{prefix[:-1]}]")
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known keys: {', '.join(hints)}"
            raise InputError(f"unknown key '{prefix}{key}' in {where}", hint)
    arguments = {key: _convert(value, hints[key], where, prefix + key) for key, value in values.items()}
    return cls(**arguments)


def _convert(value: Any, hint: Any, where: str, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _build(hint, value, where, name + ".")  # type: ignore[arg-type]
    origin = typing.get_origin(hint)
    if origin is tuple:
        kinds = typing.get_args(hint)
        if isinstance(value, list | tuple):
            if len(kinds) == 2 and kinds[1] is Ellipsis:
                return tuple(_convert(v, kinds[0], where, name) for v in value)
            if len(value) == len(kinds):
                return tuple(_convert(v, kind, where, name) for v, kind in zip(value, kinds, strict=True))
        count = "" if kinds[-1] is Ellipsis else f"{len(kinds)} "
        raise InputError(f"'{name}' in {where} is {value!r}", f"write a list of {count}values")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int to Python, not to a reader of the file
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise InputError(f"'{name}' in {where} is {value!r}", f"write a {hint.__name__}")
    return value
